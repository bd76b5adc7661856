"""Rewards: how good an answer or a drawing is, by judges of worlds, by models, or by a function of the user's own.

    from unimm.rewards import Response, Reward, build_reward

A reward is a function of responses. Preference training learns by it, makes pairs with it, and watches one with another.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.rewards.guarded import GuardedReward, RewardFailure
    from unimm.rewards.names import NAMES, build_reward
    from unimm.rewards.response import Response, Reward

__all__ = ["NAMES", "GuardedReward", "Response", "Reward", "RewardFailure", "build_reward"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Response", "Reward"), "response"),
        **dict.fromkeys(("NAMES", "build_reward"), "names"),
        **dict.fromkeys(("GuardedReward", "RewardFailure"), "guarded"),
    },
)
