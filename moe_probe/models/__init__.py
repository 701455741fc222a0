"""Models: a folder or a hub id becomes a model in 16, 8 or 4 bits, with the truth about its precision.

| module | what it knows |
|---|---|
| `loading` | `load`: the order of the work |
| `sources` | where a checkpoint lies, its tokenizer, its digest |
| `parts`, `precision` | which part of a model a tensor belongs to; how each part is really held |
| `fit` | how much memory it takes, how much there is, what goes where |
| `packing`, `quantise` | matrices in 4 and 8 bits; the quantizer that packs them tensor by tensor |
| `packed_forward` | how a layer of packed experts is run: three ways, chosen by the number of tokens |
"""

from moe_probe.models.loading import LanguageModel, load

__all__ = ["LanguageModel", "load"]
