"""What a translation model looks at: the source-target map, what each packed row collects (paper, section 3.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List

import torch
from torch import Tensor

from luna_fairseq.models.luna import LunaModel
from luna_fairseq.pictures import load_pyplot, save


@dataclass
class AttentionMap:
    """The cross-attention of one layer for one sentence and its translation.

    Attributes:
        translation: the text that the model made.
        source, target: the symbols, with the end of the sentence: M and N of them.
        heads: ``[H, N, M]`` float32, unpack weights times pack weights; each row a distribution over the source.
        packed: ``[H', L, M]`` float32, the pack weights; likewise.
    """

    translation: str
    source: List[str]
    target: List[str]
    heads: Tensor
    packed: Tensor

    def __str__(self) -> str:
        lines = ["target symbol: source symbols and weights, averaged over the heads"]
        lines += _table(self.target, self.heads.mean(dim=0), self.source)
        lines.append("packed row: source symbols and weights, averaged over the heads")
        lines += _table([str(row) for row in range(self.packed.size(1))], self.packed.mean(dim=0), self.source)
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """Write a picture: the map averaged and by head, and the pack weights.

        Args:
            path: ``.png`` or another ending that matplotlib knows.

        Raises:
            ValueError: if matplotlib is missing.
        """
        pyplot = load_pyplot()
        panels = {"average": (self.heads.mean(dim=0), self.target)}
        panels.update({f"head {number}": (head, self.target) for number, head in enumerate(self.heads)})
        rows = [str(row) for row in range(self.packed.size(1))]
        panels["packed rows"] = (self.packed.mean(dim=0), rows)
        lines = -(-len(panels) // 5)
        columns = -(-len(panels) // lines)  # no line is much emptier than the others
        size = (1 + 0.22 * len(self.source), 1 + 0.22 * max(len(self.target), len(rows)))
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(size[0] * columns, size[1] * lines), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (title, (weights, labels)) in zip(axes.flat, panels.items(), strict=False):
            axis.imshow(weights, vmin=0, vmax=1, cmap="Blues", aspect="auto")
            # A dollar sign would begin a formula.
            names = [[label.replace("$", r"\$") for label in labels] for labels in (self.source, labels)]
            axis.set_xticks(range(len(self.source)), names[0], rotation=90, fontsize=7)
            axis.set_yticks(range(len(labels)), names[1], fontsize=7)
            axis.set_title(title, fontsize=9)
        save(figure, path)
        pyplot.close(figure)


def _table(labels: List[str], weights: Tensor, source: List[str]) -> Iterator[str]:
    width = max(map(len, labels))
    for label, row in zip(labels, weights, strict=True):
        values, places = row.topk(min(4, len(source)))
        found = [
            f"{source[place]} {value:.2f}" for value, place in zip(values, places, strict=True) if value >= 0.005
        ]
        yield f"  {label:{width}}  {'  '.join(found)}"


def attention_map(hub: Any, sentence: str, layer: int = -1) -> AttentionMap:
    """Translate a sentence and return the cross-attention that the translation was made with.

    Args:
        hub: of ``LunaModel.from_pretrained``, one model; several threads may share it.
        sentence: text; of a longer one than the model reads, the part that it reads.
        layer: of the decoder, counted from 0; -1 is the last.

    Raises:
        ValueError: if the model is not a Luna model, or has no such layer.
    """
    model = hub.models[0]
    if not isinstance(model, LunaModel):
        kind = type(model).__name__
        raise ValueError(f"the checkpoint holds a {kind}, which packs nothing: name one of a Luna model")
    count = len(model.decoder.layers)
    if not -count <= layer < count:
        raise ValueError(f"--layer is {layer} and the decoder has {count} layers: take 0 to {count - 1}, or -1")
    source = hub.encode(sentence)
    if hasattr(hub.task, "cut"):
        source = hub.task.cut(source)
    target = hub.generate([source])[0][0]["tokens"]
    with torch.no_grad():
        _, extra = model.with_attention(False)(
            source[None].to(hub.device), None, target.roll(1)[None], alignment_layer=layer % count
        )
        weights = extra["attn"].weights
        heads, packed = weights.heads()[:, 0].cpu(), weights.packed()[0].cpu()
    names = [
        [dictionary[symbol] for symbol in tokens]
        for dictionary, tokens in ((hub.task.source_dictionary, source), (hub.task.target_dictionary, target))
    ]
    return AttentionMap(hub.decode(target), names[0], names[1], heads, packed)
