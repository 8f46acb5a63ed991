"""Alias of ``redline.integrations.token_rewarder``, the name in the configurations of 0.1; removed in 0.2."""

from redline.integrations.token_rewarder import *  # noqa: F403
from redline.integrations.token_rewarder import TokenRewarder as TokenRewarder
