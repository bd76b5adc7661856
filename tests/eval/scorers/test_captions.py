"""Scores of captions, beside those of pycocoevalcap on the same words."""

import math
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from unimm.eval.scorers.captions import bleu, cider_d, rouge_l, score_captions, tokenize

NOT_INSTALLED = "{} is not installed: it is only what our scores are compared with"

WORDS = ("a", "the", "cat", "dog", "mat", "sat", "on", "under", "red", "ball", "man", "rides", "tree", "two", "and", "with")

WRITTEN = {
    "A man's dog doesn't run.": "a man 's dog does n't run",
    "Two black-and-white cats, one (small) bowl!": "two black-and-white cats one -lrb- small -rrb- bowl",
    'A sign reads "STOP!!" at 3.5 p.m. on 5th Ave.': "a sign reads stop !! at 3.5 p.m. on 5th ave.",
    "It's 1,000 people; they're here...": "it 's 1,000 people they 're here",
    "I cannot go at 10:30am -- gonna sit & eat": "i can not go at 10:30 am gon na sit & eat",
    "Don’t stop “now”, a/c unit of $5.00": "do n't stop now a/c unit of $ 5.00",
    "": "",
}
"""Captions, and their words as Stanford's PTB tokenizer cuts them."""


def made_up(num_items: int = 40, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Captions that share words with their references, a little or much; one is empty, one is a reference itself."""
    rng = random.Random(seed)
    references = [
        [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(rng.randint(1, 5))] for _ in range(num_items)
    ]
    captions = []
    for several in references:
        words = rng.choice(several).split()
        captions.append(" ".join(word if rng.random() < 0.8 else rng.choice(WORDS) for word in words[: rng.randint(2, 12)]))
    captions[0], captions[1] = references[0][0], "zebra"
    return captions, references


@pytest.mark.parametrize("num_items", [2, 40])
def test_they_are_pycocoevalcap_s(num_items: int) -> None:
    bleu_module = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=NOT_INSTALLED.format("pycocoevalcap"))
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions, references = made_up(num_items)
    right = dict(enumerate(references))
    said = {index: [caption] for index, caption in enumerate(captions)}
    words, several = [one.split() for one in captions], [[one.split() for one in some] for some in references]

    total, each = Cider().compute_score(right, said)
    assert cider_d(words, several) == pytest.approx(list(each), abs=1e-9)
    assert sum(cider_d(words, several)) / num_items == pytest.approx(total, abs=1e-9)
    assert bleu(words, several) == pytest.approx(bleu_module.Bleu(4).compute_score(right, said, verbose=0)[0], abs=1e-3)
    assert [rouge_l(*pair) for pair in zip(words, several, strict=True)] == pytest.approx(
        list(Rouge().compute_score(right, said)[1]), abs=1e-9
    )


def test_rouge_of_equal_weights_is_rouge_score_s() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason=NOT_INSTALLED.format("rouge_score"))
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    captions, references = made_up(20, seed=1)
    for caption, (reference, *_) in zip(captions, references, strict=True):
        expected = scorer.score(reference, caption)["rougeL"].fmeasure
        assert rouge_l(caption.split(), [reference.split()], beta=1.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("caption", "words"), WRITTEN.items())
def test_words_are_cut_as_coco_does(caption: str, words: str) -> None:
    assert " ".join(tokenize(caption)) == words


@pytest.mark.skipif(shutil.which("java") is None, reason="Stanford's tokenizer is a Java program, and there is no Java")
def test_stanford_s_tokenizer_cuts_the_same_words() -> None:
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason=NOT_INSTALLED.format("pycocoevalcap"))
    jar = Path(module.__file__).with_name(module.STANFORD_CORENLP_3_4_1_JAR)
    words = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run(words, input="\n".join(WRITTEN), capture_output=True, text=True, check=True)
    cut = [[word for word in line.split() if word not in module.PUNCTUATIONS] for line in done.stdout.split("\n")]
    assert cut[: len(WRITTEN)] == [words.split() for words in WRITTEN.values()]


def test_a_whole_set_is_scored_and_order_does_not_matter() -> None:
    captions, references = made_up(10, seed=2)
    scores = score_captions(captions, references)
    turned = score_captions(captions[::-1], references[::-1])
    assert scores.cider_d == pytest.approx(math.fsum(scores.each) / 10)
    assert scores.each == pytest.approx(turned.each[::-1]) and scores.bleu == pytest.approx(turned.bleu)
    assert scores.each[0] == max(scores.each[:2]) and scores.each[1] == 0
    assert list(scores.measures()) == ["cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(ValueError, match="1 captions and references of 2"):
        score_captions(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="Caption 1 has no reference"):
        score_captions(["a", "b"], [["a"], []])
