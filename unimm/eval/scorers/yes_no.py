"""Yes or no: POPE's five numbers (Li et al. 2023, arXiv 2305.10355), "yes" being the positive class.

A model that names what is not there says yes too often: its ratio of yes is above that of the labels, and its precision low.
"""

from dataclasses import asdict, dataclass

YES, NO = "yes", "no"

READINGS = ("first_sentence", "exact")
"""How an answer is read. first_sentence: POPE's own rule, "no" where its first sentence has the word no or not, else "yes".
exact: lmms-eval's, only "yes" and "no" themselves; whatever else is said is wrong."""


@dataclass(frozen=True)
class YesNoScores:
    """Shares of `count` answers; what has no answers to be a share of is 0. yes_ratio: of all answers, those that say yes."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    count: int

    def measures(self) -> dict[str, float]:
        """The five numbers by name."""
        numbers = asdict(self)
        del numbers["count"]
        return numbers


def read_yes_no(answer: str, reading: str = READINGS[0]) -> str | None:
    """ "yes", "no", or None where the answer is neither. ValueError: there is no such reading."""
    if reading not in READINGS:
        raise ValueError(f"An answer is read as {' or '.join(READINGS)}, not as '{reading}'.")
    if reading == "exact":
        said = answer.strip().lower()
        return said if said in (YES, NO) else None
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return NO if {"No", "not", "no"} & set(words) else YES


def yes_no_scores(answers: list[str | None], labels: list[str]) -> YesNoScores:
    """The five numbers of answers that were read (`read_yes_no`), and of as many labels, "yes" or "no".

    Raises:
        ValueError: there are none, not as many of both, or a label is another word.
    """
    if not labels or len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers and {len(labels)} labels do not make a score: give one for each.")
    if strange := set(labels) - {YES, NO}:
        raise ValueError(f"A label is yes or no, not {min(strange)!r}.")
    pairs = list(zip(answers, labels, strict=True))
    said, asked, right = answers.count(YES), labels.count(YES), pairs.count((YES, YES))
    precision, recall = right / max(said, 1), right / max(asked, 1)
    return YesNoScores(
        accuracy=sum(answer == label for answer, label in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if right else 0.0,
        yes_ratio=said / len(pairs),
        count=len(pairs),
    )
