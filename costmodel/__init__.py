"""What work costs: pure arithmetic over the facts of `targets`; without tvm and onnx, so it runs on the device too.

format.py       how a matrix of weights is stored
operators.py    one kernel of a decoder: its kind, its sizes, the format of its weights
decoder.py      what a decoder is made of: a list of operators
standard_decoder.py  that list from the switches of a config.json
work.py         the list -> the operators of one step: flops and bytes
estimate.py     seconds with named parts; they add
cpu_cycles.py   processor cycles of the CPU kernels as they are written
factors.py      what kernels reach of a board's numbers
roofline.py     operator on a processor -> Estimate
contention.py   two processors reading one DRAM
memory.py       what a placement keeps in memory
speculative.py  rounds of speculative decoding
placement.py    where the parts of a model run
question.py     questions, variants, decisions
search.py       the best placement and draft length, and why the others lost
fit.py          factors fitted to measurements
schema/         what host and device write and read: manifest, plan, measurements
"""

from __future__ import annotations
