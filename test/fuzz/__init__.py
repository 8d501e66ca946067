"""Inputs as they come from anywhere, each with the outcome that is right for it.

``python -m fuzz --count 2000 --seed 1`` (``make fuzz``) draws inputs of every kind that HM-VNet
reads. Each is a clean one of which something was changed, and the change says beforehand what is
right: the same result, the result with a note on what was repaired, or a refusal in one line. What
comes out is held against that. Where bytes are changed anywhere and nothing can be known, what is
read is to be what another reader finds, where there is one; and nothing may crash, hang, take more
memory than the input is worth, write, or tell a patient's values.

One module a kind of input: its clean inputs, its reader, its changes.
"""
