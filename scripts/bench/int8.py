"""Speed, size and BLEU of a translation model with 8-bit matrices, next to the model as it is; on one CPU core.

python -m scripts.bench.int8 CHECKPOINT --data DIR --sentencepiece-model FILE --reference FILE
"""

import argparse
import copy
import io
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, List

import torch
from torch import nn


def quantised(model: nn.Module) -> nn.Module:
    """A copy whose projections are int8; activations are quantised as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to become a package of its own
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def size(model: nn.Module) -> int:
    """Bytes of the weights on disk."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def translate(task: Any, model: Any, count: int, batch: int) -> tuple[List[str], float]:
    """The first ``count`` sentences of the test set by beam search, as pieces; and seconds of search."""
    generator = task.build_generator([model], Namespace(beam=5, max_len_a=1.5, max_len_b=10))
    data, found, seconds = task.dataset("test"), {}, 0.0
    order = sorted(range(count), key=lambda i: -len(data[i]["source"]))
    for start in range(0, count, batch):
        sample = data.collater([data[i] for i in order[start : start + batch]])
        began = time.perf_counter()
        with torch.no_grad():
            hypotheses = task.inference_step(generator, [model], sample)
        seconds += time.perf_counter() - began
        for i, best in zip(sample["id"].tolist(), hypotheses, strict=True):
            found[i] = task.target_dictionary.string(best[0]["tokens"].int())
    return [found[i] for i in range(count)], seconds


def main() -> None:
    """Print a line for float32, one for int8, and float32 once more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True, help="folder of the binarised test set and the dictionaries")
    parser.add_argument("--sentencepiece-model", required=True)
    parser.add_argument("--reference", required=True, help="text of the test set's target side")
    parser.add_argument("--sentences", type=int, default=1000)
    args = parser.parse_args()

    from luna_fairseq import plugin

    plugin.load()
    import sacrebleu
    import sentencepiece
    from fairseq import checkpoint_utils

    torch.set_num_threads(1)
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([args.checkpoint], {"data": args.data})
    task.load_dataset("test")
    references = Path(args.reference).read_text(encoding="utf-8").splitlines()
    count = min(args.sentences, len(references))
    pieces = sentencepiece.SentencePieceProcessor(model_file=args.sentencepiece_model)
    model = models[0].eval()
    for name, one in (("float32", model), ("int8", quantised(model)), ("float32 again", model)):
        found, seconds = translate(task, one, count, 50)
        texts = [pieces.decode(line.split()) for line in found]
        score = sacrebleu.corpus_bleu(texts, [references[:count]]).score
        print(f"{name}: BLEU {score:.2f}, {seconds:.1f} s, {size(one):,} bytes", flush=True)


if __name__ == "__main__":
    main()
