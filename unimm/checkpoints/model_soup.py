"""The mean of several models' weights: a model soup (Wortsman et al. 2022, arXiv 2203.05482).

Models that were trained on from one and the same, with other seeds or other data, mostly lie in one basin: the mean of their
weights makes fewer mistakes than each of them, and costs what one costs.
"""

from torch import nn

from unimm.checkpoints.bundle import ModelBundle
from unimm.models.image_tokenizer.model import ImageTokenizer

ROUNDING = 0.01
"""Parts of the largest number of a tensor."""


class Average:
    """The weighted mean of models, added up one by one in float32: `add` each, then `put` it into the first.

    Args:
        name: of the first model, for errors.
        first: the model that the others have to resemble, as it is stored; it becomes the mean.
        weight: of it. Weights are divided by their sum.
    """

    def __init__(self, name: str, first: ModelBundle, weight: float) -> None:
        self._name, self._first, self._total = name, first, weight
        # Ties are one parameter with one name; buffers are the same in models of the same sizes.
        self._sums = {name: weight * parameter.detach().float() for name, parameter in _parameters(first).items()}

    def add(self, name: str, other: ModelBundle, weight: float) -> None:
        """Add another model.

        Raises:
            ValueError: it has other sizes, another text tokenizer, or another image tokenizer, whose codes mean other things.
        """
        if other.tokenizer.tokenizer.get_vocab() != self._first.tokenizer.tokenizer.get_vocab():
            raise ValueError(f"{name} and {self._name} have different text tokenizers: they have no mean.")
        if other.model.config != self._first.model.config:
            raise ValueError(f"{name} and {self._name} are of different sizes: they have no mean.")
        if not _are_alike(other.image_tokenizer, self._first.image_tokenizer):
            raise ValueError(f"{name} and {self._name} have different image tokenizers: they have no mean.")
        own = _parameters(other)
        if {name: one.shape for name, one in own.items()} != {name: one.shape for name, one in self._sums.items()}:
            raise ValueError(f"{name} and {self._name} have different heads: they have no mean.")
        for parameter_name, parameter in own.items():
            self._sums[parameter_name] += weight * parameter.detach().float()
        self._total += weight

    def put(self) -> None:
        """The first model becomes the mean, in the dtypes that it had."""
        for name, parameter in _parameters(self._first).items():
            parameter.data = (self._sums.pop(name) / self._total).to(parameter.dtype)


def _parameters(bundle: ModelBundle) -> dict[str, nn.Parameter]:
    """Of the model and its heads, which were trained together."""
    parts = {"": bundle.model, **{f"heads.{name}.": head for name, head in bundle.heads.items()}}
    return {f"{prefix}{name}": parameter for prefix, part in parts.items() for name, parameter in part.named_parameters()}


def _are_alike(one: ImageTokenizer, other: ImageTokenizer) -> bool:
    """Whether two are the same but for rounding: one may be stored in half precision."""
    if one.config != other.config:
        return False
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all((a.float() - b.float()).abs().max() <= ROUNDING * a.float().abs().max() for a, b in pairs if a.numel())
