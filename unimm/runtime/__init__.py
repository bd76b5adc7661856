"""What every layer stands on: devices, environment, whole files, and what processes of a run agree on."""
