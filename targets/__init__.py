"""What the hardware is: boards, cores and GPUs as facts, and what is special to one kind of them.

``targets``, ``targets.device`` and ``targets.boards`` import neither tvm nor numpy: the cost model and the device
read boards without them.
"""

from __future__ import annotations
