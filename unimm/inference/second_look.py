"""Looking again before speaking: two ways against what is said of an image and is not in it. No training, some more passes.

Votes (self-consistency, arXiv 2203.11171): the usual answer and further ones that are sampled, all in one batch; the answer
that most of them give wins, and the usual one where they tie. Of captions, which are hardly ever the same, it is claims that
are voted on: the caption is taken that is nearest to what most of them say, and loses what most of them do not.

Verification, as in Woodpecker (arXiv 2310.16045), with no further model: what a draft says is there (`claims`) is asked for,
one claim a question, and the probability of "yes" decides (`vqa_score`). Where a claim fails, further drafts are written and
checked, the best is taken, and what still fails is left out; with votes, all of them are checked at once. An answer of yes or
no to whether something is there is checked by asking the same in other words: the log-odds of all wordings are averaged.

Cost, in sequences that go through the model: `votes` drafts (one prefill), of an answer or a caption; to verify, 2 questions
a claim, 1 a caption as a whole, and where something fails, `drafts` more drafts with their questions. All that is asked of
all images goes in batches.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from unimm.data.records import SHOWS
from unimm.data.video.choosing import Frames
from unimm.inference.claims import (
    OPPOSITE,
    YES,
    FindClaims,
    Questions,
    agreement_of,
    existence_questions,
    find_asked,
    find_claims,
    first_word,
    keep_claims,
    language_of,
    most_voted,
    read_questions,
    support_of,
    vote_of,
)
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine_parts import EngineParts
from unimm.inference.examples import ImageQuestion
from unimm.inference.text_stream import write
from unimm.inference.vqa_score import ANSWERS_IN, mean_of_log_odds, probability_of_yes
from unimm.runtime.number_checks import MOST_DRAFTS, check_number, check_probability, check_whole, real_number, whole_number
from unimm.sequence import Sequence

VOTES_TEMPERATURE = 0.7
"""Of votes where nobody says (arXiv 2203.11171 §3.1 has 0.5 to 0.7)."""


@dataclass(frozen=True)
class Verification:
    """How a text about an image is checked by looking again: `verify=True` is one of these as it stands.

    claims: finds what a text says is there; a function of your own, text -> phrases, where the rule does not suit your texts.
    questions: how it is asked whether a claim is there (`claims.Questions`), instead of `claims.QUESTIONS`.
    whole: of a caption also ask whether the image shows it as a whole (`engine.alignment`): what is wrong with numbers, places
        and relations shows there alone.
    shown: asked in place of questions, (image or video as it was given, a file object as its bytes; claims) -> the probability
        of each that it is there: a detector, or, where the model has boxes, `engine.locate`.
    threshold: what is less probable than that fails.
    drafts: further ones, where something fails and there are no votes. temperature: of those.
    """

    claims: FindClaims = find_claims
    questions: Questions | None = None
    whole: bool = True
    shown: Callable[[Any, list[str]], list[float]] | None = None
    threshold: float = 0.5
    drafts: int = 4
    temperature: float = VOTES_TEMPERATURE

    def __post_init__(self) -> None:
        check_probability(self, "threshold")
        check_whole(self, 0, "drafts")
        check_number(self, "temperature", above=0.0)
        if not callable(self.claims):
            raise ValueError(f"claims is a function from a text to its phrases, not {self.claims!r:.80}.")
        if not callable(self.shown or find_claims):
            raise ValueError(f"shown is a function from an image and its claims to probabilities, not {self.shown!r:.80}.")
        object.__setattr__(self, "questions", read_questions(self.questions))


@dataclass(frozen=True)
class Claim:
    """A phrase that was asked for, and how probable the model finds that it is there, from 0 to 1."""

    text: str
    probability: float


@dataclass(frozen=True)
class CheckedText:
    """A text about an image, and how it came about.

    drafts: all that were written, the usual one first.
    agreement: with votes, the share of them that gave the answer; of captions, how much of what it and the others claim is the
        same, from 0 to 1; else None.
    claims: with verification, what was asked for of the first choice, without what is too long to be asked. removed: claims
        that the text no longer makes, though the draft that it came from did.
    whole: with verification, the probability that the image shows the caption, or the draft that it came from; else None.
    passes: sequences that went through the model for it.
    """

    text: str
    drafts: tuple[str, ...]
    agreement: float | None = None
    claims: tuple[Claim, ...] = ()
    removed: tuple[str, ...] = ()
    whole: float | None = None
    passes: int = 1


@dataclass
class _Look:
    """What is asked of an image or several, and what is known so far. draft: the one that `text` came from. known:
    probabilities of claims, by `vote_of`, wholes: of texts; None: too long to be asked."""

    asked: ImageQuestion
    image: Any = None
    drafts: list[str] = field(default_factory=list)
    text: str = ""
    draft: str = ""
    agreement: float | None = None
    claims: list[Claim] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    whole: float | None = None
    passes: int = 0
    known: dict[str, float | None] = field(default_factory=dict)
    wholes: dict[str, float | None] = field(default_factory=dict)

    def result(self) -> CheckedText:
        return CheckedText(
            self.text, tuple(self.drafts), self.agreement, tuple(self.claims), tuple(self.removed), self.whole, self.passes
        )


@dataclass(frozen=True)
class _Question:
    """A question of yes or no whose answer is kept in `answers` by `key`; language: of the answer."""

    look: _Look
    answers: dict[str, float | None]
    key: str
    text: str
    language: str


class SecondLook:
    """Texts about images, by votes, verified, or both.

    Args:
        limit: tokens of a text. temperature: of the one draft; of votes, of all but the first, where 0 stands for
            `VOTES_TEMPERATURE`, since they would all be the same.
        votes: drafts that vote; 1 is none.
        verify: True, or how.
        is_caption: the texts describe the image, so that they can be checked as a whole.
        sampling: further settings of `Sampling`.

    Raises:
        ValueError: there are fewer votes than one, or verify is something else.
    """

    def __init__(
        self, engine: EngineParts, limit: int, temperature: float = 0.0, votes: int = 1,
        verify: bool | Verification = False, is_caption: bool = False, **sampling: Any,
    ) -> None:  # fmt: skip
        self.engine, self.limit, self.is_caption = engine, limit, is_caption
        self.votes = whole_number("votes", votes, 1, MOST_DRAFTS)
        if not isinstance(verify, bool | Verification):
            raise ValueError(f"verify is True, False or a Verification, not {verify!r:.80}.")
        self.check = Verification() if verify is True else verify or None
        usual, others = real_number("temperature", temperature), self.check.temperature if self.check else VOTES_TEMPERATURE
        if self.votes > 1:
            usual, others = 0.0, usual or VOTES_TEMPERATURE
        first = whole_number("index", sampling.pop("index", 0))
        self._usual, self._sampled = Sampling(usual, index=first, **sampling), partial(Sampling, others, **sampling)
        self._find = self.check.claims if self.check else find_claims

    def texts(
        self, questions: list[ImageQuestion], stop: tuple[str, ...] = (), images: list | None = None
    ) -> list[CheckedText]:
        """A text for each question about its images; `stop`: strings that end a text. images: as `Verification.shown` is given
        them."""
        looks = [_Look(one.opened(), image) for one, image in zip(questions, images or [None] * len(questions), strict=True)]
        self._write(looks, [self._usual, *self._others(self.votes - 1)], stop)
        for look in looks:
            look.text = look.draft = look.drafts[0]
            if self.votes > 1:
                self._vote(look)
        if self.check:
            asked = [] if self.is_caption else [look for look in looks if self._answers_yes_or_no(look)]
            self._check_yes_or_no(asked, self.check)
            told = {id(look) for look in asked}
            self._check_claims([look for look in looks if id(look) not in told], self.check, stop)
        return [look.result() for look in looks]

    # -- drafts and votes --------------------------------------------------------------------------------------------------

    def _others(self, count: int) -> list[Sampling]:
        """Of drafts beside the usual one."""
        return [self._sampled(index=self._usual.index + 1 + number) for number in range(count)]

    def _write(self, looks: list[_Look], settings: list[Sampling], stop: tuple[str, ...]) -> None:
        """A draft for each of the settings of each of them, in one batch; a prompt is prefilled once."""
        requests = []
        for look in looks:
            sequence = self.engine.template.chat(look.asked.turns(), self.limit).opened()
            requests += [Request(sequence, one) for one in settings]
        written, count = write(self.engine.decoder, self.engine.tokenizer, requests, stop), len(settings)
        for number, look in enumerate(looks):
            look.drafts += [one.text for one in written[number * count : (number + 1) * count]]
            look.passes += count

    def _vote(self, look: _Look) -> None:
        """The choice of most drafts: of their claims where these are captions that make some, else of the answers."""
        made = [self._claims_of(draft) for draft in look.drafts] if self.is_caption else []
        if not any(made):
            place, look.agreement = most_voted(look.drafts)
            look.text = look.draft = look.drafts[place]
            return
        best = max(range(len(made)), key=lambda place: (agreement_of(made, place), -place))
        others = made[:best] + made[best + 1 :]
        failed = {claim for claim in made[best] if sum(support_of(claim, other) for other in others) < len(others) / 2}
        look.agreement = agreement_of(made, best)
        self._leave_out(look, look.drafts[best], failed)

    def _claims_of(self, text: str) -> dict[str, str]:
        """The claims of a text by what they vote for, in order."""
        found: dict[str, str] = {}
        for claim in self._find(text):
            found.setdefault(vote_of(claim), claim)
        return found

    def _leave_out(self, look: _Look, draft: str, failed: set[str]) -> None:
        """A draft, or the text as it is so far, becomes the text, without claims that failed."""
        look.draft = look.draft if draft == look.text else draft
        look.text = keep_claims(draft, failed, self._find) if failed else draft
        left = self._claims_of(look.text)
        look.removed = [claim for vote, claim in self._claims_of(look.draft).items() if vote not in left]

    # -- verification ------------------------------------------------------------------------------------------------------

    def _answers_yes_or_no(self, look: _Look) -> bool:
        """Of one image alone: what is asked about several, or a video, is left as it is."""
        is_one = len(look.asked.images) == 1 and not isinstance(look.asked.images[0], Frames)
        return is_one and first_word(look.text) in OPPOSITE and find_asked(look.asked.question, self._find) is not None

    def _check_yes_or_no(self, looks: list[_Look], check: Verification) -> None:
        """Whether something is there, asked in other words, too: the averaged log-odds of yes decide."""
        questions = []
        for look in looks:
            claim = find_asked(look.asked.question, self._find) or ""
            if check.shown:
                look.known.update(_look_up(check, look.image, {claim: claim}))
                continue
            for text in dict.fromkeys([look.asked.question, *existence_questions(claim, check.questions)]):
                questions.append(_Question(look, look.known, claim, text, language_of(text)))
        self._ask(questions)
        for look in looks:
            look.claims = _known_claims(look, {claim: claim for claim in look.known})
            said = first_word(look.text)
            if look.claims and (look.claims[0].probability >= check.threshold) != (said in YES):
                look.text = OPPOSITE[said]

    def _check_claims(self, looks: list[_Look], check: Verification, stop: tuple[str, ...]) -> None:
        """Every claim is asked for; where one fails, the best of further drafts is taken, and loses what fails of it. Of votes
        the best is taken in any case."""
        self._ask_for([(look, look.text) for look in looks], check)
        for look in looks:
            look.claims = _known_claims(look, self._claims_of(look.text))
            look.whole = look.wholes.get(look.text)
        failing = [look for look in looks if self.votes > 1 or self._rank(look, look.text, check) > (0, -check.threshold)]
        if failing and self.votes == 1 and check.drafts:
            self._write(failing, self._others(check.drafts), stop)
        self._ask_for([(look, draft) for look in failing for draft in look.drafts], check)
        for look in failing:
            best = min([look.text, *look.drafts], key=lambda text: self._rank(look, text, check))
            failed = {vote for vote in self._claims_of(best) if _fails(look, vote, check)}
            look.whole = look.wholes.get(best)
            self._leave_out(look, best, failed)

    def _rank(self, look: _Look, text: str, check: Verification) -> tuple[int, float]:
        """The lower the better: claims that fail, then how improbable it is that the image shows it all; where that is not
        known, as if it were just probable enough."""
        whole = look.wholes.get(text)
        failed = sum(_fails(look, vote, check) for vote in self._claims_of(text))
        return failed, -(check.threshold if whole is None else whole)

    def _ask_for(self, texts: list[tuple[_Look, str]], check: Verification) -> None:
        """Ask for what is not known yet of these texts: each claim, and captions as a whole."""
        questions: dict[tuple[int, str], list[_Question]] = {}
        for look, text in texts:
            new = {vote: claim for vote, claim in self._claims_of(text).items() if vote not in look.known}
            if check.shown:
                look.known.update(_look_up(check, look.image, new))
            else:
                for vote, claim in new.items():
                    asked = existence_questions(claim, check.questions)
                    questions[id(look), vote] = [_Question(look, look.known, vote, one, language_of(one)) for one in asked]
            if self.is_caption and check.whole and text.strip() and text not in look.wholes:
                questions[id(look), SHOWS + text] = [_Question(look, look.wholes, text, SHOWS.format(text), "en")]
        self._ask([one for asked in questions.values() for one in asked])

    def _ask(self, questions: list[_Question]) -> None:
        """Ask all of them in batches; of several with one key the mean of the log-odds counts. What is too long to be asked
        is not known, None, and a warning says so."""
        found: dict[tuple[int, str], tuple[_Question, list[float]]] = {}
        for language, words in ANSWERS_IN.items():
            asked: list[tuple[_Question, Sequence]] = []
            for one in (one for one in questions if one.language == language):
                sequence = self.engine.template.chat([one.look.asked.ask(one.text)], 1).opened()
                if sequence.length <= self.engine.model.config.max_positions:
                    asked.append((one, sequence))
            sequences = [sequence for _, sequence in asked]
            shares = probability_of_yes(self.engine.model, self.engine.tokenizer, sequences, self.engine.deterministic, words)
            for (one, _), share in zip(asked, shares, strict=True):
                one.look.passes += 1
                found.setdefault((id(one.answers), one.key), (one, []))[1].append(share)
        unasked = {(id(one.answers), one.key): one for one in questions if (id(one.answers), one.key) not in found}
        for one in unasked.values():
            one.answers[one.key] = None
        if unasked:
            warnings.warn(f"{len(unasked)} claims or captions stand unchecked: too long to ask the model for.", stacklevel=2)
        for one, shares in found.values():
            one.answers[one.key] = mean_of_log_odds(shares)


def _look_up(check: Verification, image: Any, claims: dict[str, str]) -> dict[str, float]:
    """How probable each claim is, by its key, as `shown` says. ValueError: it says something else."""
    if not claims or check.shown is None:
        return {}
    shares = [float(share) for share in check.shown(image, list(claims.values()))]
    if len(shares) != len(claims) or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shown gives a probability from 0 to 1 for each of {len(claims)} claims, not {shares!r:.80}.")
    return dict(zip(claims, shares, strict=True))


def _known_claims(look: _Look, claims: dict[str, str]) -> list[Claim]:
    """Claims by what they vote for, with their probabilities; without those that could not be asked for."""
    return [Claim(claim, share) for vote, claim in claims.items() if (share := look.known[vote]) is not None]


def _fails(look: _Look, vote: str, check: Verification) -> bool:
    share = look.known[vote]
    return share is not None and share < check.threshold
