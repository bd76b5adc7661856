"""Reports of trainings and evaluations, comparisons of runs, fits of scaling."""
