"""Where the bundled data lie: the trained model, the sample corpus, runs of earlier checkpoints."""

from pathlib import Path

MODEL = Path(__file__).parent / "tiny-mixtral"
SAMPLE = Path(__file__).parent / "sample"
CHECKPOINT_RUNS = Path(__file__).parent / "checkpoint-runs"
