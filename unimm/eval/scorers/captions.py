"""Captions against references, as COCO's evaluation scores them: CIDEr-D, BLEU-1 to 4, ROUGE-L (pycocoevalcap).

    score_captions(["a cat on a mat"], [["A cat is on the mat.", "The cat sat on a mat."]])

COCO cuts words by Stanford's PTB tokenizer, a Java program. `tokenize` follows its rules for what
captions hold; other tokenizers give other scores, also on the same captions. Sources: CIDEr, arXiv 1411.5726; BLEU,
Papineni et al. 2002, over the whole set, by torchmetrics; ROUGE, Lin 2004.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

ORDER = 4
"""Words of the longest n-grams."""

SIGMA = 6.0
"""Of CIDEr-D's penalty for captions of another length, in bigrams."""

BETA = 1.2
"""How much more recall counts than precision in COCO's ROUGE-L."""

_TOKEN = re.compile(
    r"""
    \S+@\S+ | https?://\S+                # addresses
    | (?:[^\W\d_]\.){2,}                  # p.m., u.s.
    | (?:mr|mrs|ms|dr|st|ave|jr|sr|vs|ft)\. | no\.(?=\s*\d)
    | (?:can|gon|wan)(?=not\b|na\b)       # can|not
    | (?:got)(?=ta\b) | (?:gim|lem)(?=me\b)
    | [^\W\d_]+(?=n't\b)                 # the word before n't: do|n't
    | n't\b
    | o'clock\b
    | '(?:s|m|d|ll|re|ve)\b             # it|'s
    | \d+(?:[.,:/]\d+)+                 # 3.5, 1,000, 10:30, 1/2
    | '\d\ds?\b                         # '80s
    | \w+(?:[-/.]\w+)*                  # also black-and-white
    | [!?]{2,}                          # no mark that COCO takes out
    | [^\w\s]                           # a mark of its own
    """,
    re.VERBOSE,
)
_DROPPED = frozenset("'`.?!,:-;\"“”‘’…–—")
"""Marks that COCO takes out."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

Words = list[str]


@dataclass(frozen=True)
class CaptionScores:
    """cider_d: mean over captions, 0 to 10. bleu: of the whole set, BLEU-1 to 4. rouge_l: mean over captions, 0 to 1.

    each: of every caption, its CIDEr-D.
    """

    cider_d: float
    bleu: tuple[float, ...]
    rouge_l: float
    each: tuple[float, ...]

    def measures(self) -> dict[str, float]:
        """All numbers by name."""
        return {"cider_d": self.cider_d, **{f"bleu_{n}": b for n, b in enumerate(self.bleu, 1)}, "rouge_l": self.rouge_l}


def tokenize(caption: str) -> Words:
    """A caption's words in small letters, without punctuation."""
    words: list[str] = _TOKEN.findall(caption.lower().replace("’", "'"))
    return [_BRACKETS.get(word, word) for word in words if word not in _DROPPED]


def score_captions(captions: list[str], references: list[list[str]]) -> CaptionScores:
    """Scores of captions, each with its references.

    Raises:
        ValueError: there are none, not as many of both, or one has no reference.
    """
    if not captions or len(captions) != len(references):
        raise ValueError(
            f"{len(captions)} captions and references of {len(references)} do not make a score: give some for each."
        )
    if any(not several for several in references):
        raise ValueError(f"Caption {next(n for n, several in enumerate(references) if not several)} has no reference.")
    said = [tokenize(caption) for caption in captions]
    right = [[tokenize(one) for one in several] for several in references]
    each = cider_d(said, right)
    rouge = [rouge_l(words, several) for words, several in zip(said, right, strict=True)]
    return CaptionScores(sum(each) / len(each), bleu(said, right), sum(rouge) / len(rouge), tuple(each))


def cider_d(captions: list[Words], references: list[list[Words]]) -> list[float]:
    """CIDEr-D of every caption, 0 to 10: how alike its n-grams are to those of its references, rare ones counting most.

    How rare an n-gram is, the references of all captions say: the score depends on the set.
    """
    counted = [[_count_ngrams(words) for words in several] for several in references]
    documents = Counter(ngram for several in counted for ngram in set().union(*several))
    log_size = math.log(len(references))

    def weigh(counts: Counter[tuple[str, ...]]) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """TF-IDF by the order of n-grams, the norms, and the number of bigrams."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_size - math.log(max(1, documents[ngram])))
        norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def similarity(caption: tuple, reference: tuple) -> float:
        (own, own_norms, own_length), (other, other_norms, other_length) = caption, reference
        total = 0.0
        for order in range(ORDER):
            shared = sum(
                min(value, other[order].get(ngram, 0.0)) * other[order].get(ngram, 0.0) for ngram, value in own[order].items()
            )
            norm = own_norms[order] * other_norms[order]
            total += shared / norm if norm else shared
        return total / ORDER * math.exp(-((own_length - other_length) ** 2) / (2 * SIGMA**2))

    scores = []
    for words, several in zip(captions, counted, strict=True):
        caption = weigh(_count_ngrams(words))
        scores.append(10 * sum(similarity(caption, weigh(one)) for one in several) / len(several))
    return scores


def bleu(captions: list[Words], references: list[list[Words]]) -> tuple[float, ...]:
    """BLEU-1 to 4 of the whole set, 0 to 1; of several references the length that is closest counts, the shorter of two."""
    from torchmetrics.functional.text import bleu_score  # takes seconds to import

    said = [" ".join(words) for words in captions]
    right = [[" ".join(words) for words in sorted(several, key=len)] for several in references]
    return tuple(float(bleu_score(said, right, n_gram=order)) for order in range(1, ORDER + 1))


def rouge_l(caption: Words, references: list[Words], beta: float = BETA) -> float:
    """ROUGE-L of a caption, 0 to 1, of the longest common subsequence: from the best precision and the best recall of all
    references, as COCO has it."""
    common = [_common_length(caption, words) for words in references]
    precision = max(length / max(len(caption), 1) for length in common)
    recall = max(length / max(len(words), 1) for length, words in zip(common, references, strict=True))
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision and recall else 0.0


def _count_ngrams(words: Words) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + size]) for size in range(1, ORDER + 1) for at in range(len(words) - size + 1))


def _common_length(one: Words, other: Words) -> int:
    """Words of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for place, its in enumerate(other):
            row.append(before[place] + 1 if word == its else max(before[place + 1], row[place]))
    return row[-1]
