"""What do 4 and 8 bits save, and what do they cost? Against the same precision as transformers loads it.

The rival is `from_pretrained(quantization_config=BitsAndBytesConfig(...))`, which quantises dense layers and leaves
fused experts as they are. Each line is a ratio, ours to the rival's, in the same run: bytes of the experts, bytes of
the whole model, time of a forward of 256 tokens (interleaved, the median of the ratios), all on the CPU.

    python benchmarks/quantised_memory.py [FOLDER]
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

import moe_probe as mp
from moe_probe.models.precision import PartPrecision, measure_precision
from moe_probe.models.sources import find_source

TOKENS, ROUNDS = 256, 15
RIVALS = {
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
}


def seconds(model: PreTrainedModel, ids: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        model.base_model(ids)
    return time.perf_counter() - start


def total(parts: tuple[PartPrecision, ...]) -> int:
    return sum(part.bytes for part in parts)


def main() -> None:
    # The rival says at every layer that it casts its inputs.
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    folder = sys.argv[1] if len(sys.argv) > 1 else "tiny-mixtral"
    print(f"{folder}, float32 on the CPU, {torch.get_num_threads()} threads; ours / transformers + bitsandbytes")
    for quantization, config in RIVALS.items():
        ours = mp.load(folder, quantization=quantization, dtype="float32", device_map="cpu")
        rival = AutoModelForCausalLM.from_pretrained(
            find_source(folder).location, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
        )
        theirs = measure_precision(rival)
        ids = torch.arange(TOKENS)[None] % ours.model.config.vocab_size
        for model in (ours.model, rival):  # what is built once is not part of the measure
            seconds(model, ids)
        times = [(seconds(ours.model, ids), seconds(rival, ids)) for _ in range(ROUNDS)]
        print(
            f"{quantization}: experts {ours.parts[0].bytes / theirs[0].bytes:.3f} of the bytes "
            f"({ours.parts[0].bits_per_parameter:.2f} bits a parameter against {theirs[0].bits_per_parameter:.2f}), "
            f"model {total(ours.parts) / total(theirs):.3f}, "
            f"forward {statistics.median(own / other for own, other in times):.2f} of the time"
        )


if __name__ == "__main__":
    main()
