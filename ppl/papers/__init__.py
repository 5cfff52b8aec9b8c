"""Papers' protocols, one recipe a file, for ``ppl reproduce NAME``: the number found beside the published one.

Every recipe takes ``budget``, the share of the published training that is done. At less than 1 the table says what
was done in place of the protocol, and differences from the paper are then of little meaning.
"""
