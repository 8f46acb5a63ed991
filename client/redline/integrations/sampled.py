"""Alias of ``redline.integrations.token_rewarder``, the name in the configurations of 0.1; removed in 0.2."""

from redline.integrations.token_rewarder import ClientPerEventLoop as ClientPerLoop
from redline.integrations.token_rewarder import SampledResponse as Sampled
from redline.integrations.token_rewarder import TokenRewarder, TokenRewards, to_messages
from redline.integrations.token_rewarder import decode_sampled as read_sampled
from redline.integrations.token_rewarder import service_address as address

messages_of = to_messages

__all__ = ["ClientPerLoop", "Sampled", "TokenRewarder", "TokenRewards", "address", "messages_of", "read_sampled"]
