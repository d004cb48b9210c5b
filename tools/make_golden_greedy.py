#!/usr/bin/env python3
"""Writes tests/golden/CASE/greedy.json: the greedy text of `transformers` on each case's weights.

Run after make_golden.py. A prompt is taken only where no choice on its way was close.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers

import hf_reference as hf

NEW_TOKENS, PROMPT = 32, 7
MIN_MARGIN = 1e-3  # of the largest logit to the next: rounding moves a logit by some 1e-6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden")
    golden = parser.parse_args().golden
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for directory in sorted(path.parent for path in golden.glob("*/config.json")):
        model = hf.load_model(directory).eval()
        for seed in range(1000):
            prompt = hf.random_tokens(model.config.vocab_size, 1, PROMPT, seed)
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS,
                                 min_new_tokens=NEW_TOKENS,
                                 output_logits=True, return_dict_in_generate=True, pad_token_id=0)
            top = torch.stack(out.logits)[:, 0].topk(2).values
            if (top[:, 0] - top[:, 1]).min() > MIN_MARGIN:
                break
        else:
            raise SystemExit(f"{directory}: every prompt has a close choice")
        tokens = out.sequences[0, PROMPT:].tolist()
        record = {"versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
                  "seed": seed, "prompt": prompt[0].tolist(), "tokens": tokens}
        (directory / "greedy.json").write_text(json.dumps(record) + "\n")
        print(f"{directory.name}: seed {seed}, {len(set(tokens))} different tokens")


if __name__ == "__main__":
    main()
