"""SAELens' side of caching.py, in an environment that has it: a line in, one run, "seconds N" out."""

import json
import os
import shutil
import sys
import time

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from datasets import load_dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
from sae_lens.load_model import load_model


def main() -> None:
    job = json.loads(sys.argv[1])
    text = load_dataset("json", data_files=job["text"], split="train")
    model = load_model("AutoModelForCausalLM", job["model"], device="cpu", hook_names=[job["hook"]])
    width = model.model.config.hidden_size
    for _ in sys.stdin:
        shutil.rmtree(job["out"], ignore_errors=True)
        # float16, since it cannot store bfloat16; a buffer of a quarter, since it writes whole buffers
        config = CacheActivationsRunnerConfig(
            dataset_path="local", model_name=job["model"], model_class_name="AutoModelForCausalLM",
            model_batch_size=job["batch"], hook_name=job["hook"], d_in=width, context_size=job["context"],
            training_tokens=job["tokens"], device="cpu", dtype="float16", new_cached_activations_path=job["out"],
            buffer_size_gb=job["tokens"] / 4 * width * 2 / 1e9, prepend_bos=True, shuffle=False,
        )  # fmt: skip
        runner = CacheActivationsRunner(config, override_dataset=text)
        runner.model = model
        began = time.perf_counter()
        runner.run()
        print(f"\nseconds {time.perf_counter() - began}", flush=True)


if __name__ == "__main__":
    main()
