"""Alias of ``redline.token_advantages``, the name in the configurations of 0.1; removed in 0.2."""

from redline.token_advantages import leave_one_out_advantages as leave_one_out_advantages
from redline.token_advantages import rewards_to_go as rewards_to_go
