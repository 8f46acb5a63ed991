"""Alias of ``redline.text.alignment``; removed in 0.2. ``from redline import align_rewards`` works in every version."""

from redline.text.alignment import align_rewards as align_rewards
from redline.text.alignment import check_offsets as check_offsets
