"""The Python interface to a trained masked-LM model: fairseq's RoBERTa interface, and the packed sequence."""

import os
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from fairseq import hub_utils, utils
from fairseq.data.data_utils import collate_tokens
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.models.roberta import RobertaHubInterface
from torch import Tensor

from luna_fairseq.compat.hub import kind_by_files
from luna_fairseq.data.pieces import (
    ENCODER_JSON,
    KINDS,
    SENTENCEPIECE,
    SENTENCEPIECE_NAMES,
    UNKNOWN_WORD,
    VOCAB_BPE,
    Pieces,
)

# A sentence, a pair of sentences, or symbols that were encoded before.
Text = Union[str, Tuple[str, ...], Tensor]
StrPath = Union[str, "os.PathLike[str]"]
# The options of fairseq that name the files of pieces.
_OPTIONS = {SENTENCEPIECE: "sentencepiece_model", ENCODER_JSON: "gpt2_encoder_json", VOCAB_BPE: "gpt2_vocab_bpe"}


def find_pieces(folder: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """Which segmentation belongs to a model: what ``options`` say, else what is found by its dictionary.

    Args:
        folder: where ``dict.txt`` is; :meth:`luna_fairseq.data.pieces.Pieces.of_model` says where the pieces may lie.
        options: of ``from_pretrained``; not changed.

    Returns:
        the options, completed as far as the files are there.
    """
    options = {name: value for name, value in options.items() if value is not None}
    named = kind_by_files(options)
    if named is not None:
        options["bpe"] = named
    pieces = Pieces.of_model(Path(folder), kinds=[kind for kind in KINDS if named in (None, kind)])
    if pieces is None:
        return options
    files = {_OPTIONS[name]: str(path) for name, path in pieces.files.items()}
    return {"bpe": "sentencepiece" if SENTENCEPIECE in pieces.files else "gpt2", **files, **options}


def load_for_hub(
    model_name_or_path: StrPath, checkpoint_file: StrPath, data_name_or_path: StrPath, **options: Any
) -> Dict[str, Any]:
    """Load a checkpoint with its dictionary and its pieces.

    Args:
        model_name_or_path: folder of the checkpoint.
        checkpoint_file: its name there.
        data_name_or_path: folder of ``dict.txt`` (the first, of several shards); one that starts with a dot is looked
            for from the checkpoint's folder.
        options: to override.

    Returns:
        of fairseq's: ``args``, ``task`` and ``models``.

    Raises:
        FileNotFoundError: if the checkpoint or the dictionary does not exist, or the pieces that are asked for.
    """
    names = (model_name_or_path, checkpoint_file, data_name_or_path)
    model, checkpoint, data = (os.fspath(name) for name in names)
    path = os.path.join(model, checkpoint)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist: name the folder and the checkpoint_file")
    folder = os.path.abspath(os.path.join(model if data.startswith(".") else "", utils.split_paths(data)[0]))
    dictionaries = [os.path.join(folder, part, "dict.txt") for part in ("", "input0")]
    if not any(map(os.path.isfile, dictionaries)):
        raise FileNotFoundError(f"dictionary {dictionaries[0]} does not exist: name its folder as data_name_or_path")
    options = find_pieces(folder, options)
    if options.get("bpe") == KINDS[0] and _OPTIONS[SENTENCEPIECE] not in options:
        beside = os.path.join(model, SENTENCEPIECE_NAMES[1])  # which fairseq takes
        if not os.path.isfile(beside):
            raise FileNotFoundError(
                f"bpe is {KINDS[0]} and neither {folder} nor the two folders above it have a {SENTENCEPIECE} of this "
                f"dictionary: give {_OPTIONS[SENTENCEPIECE]}="
            )
    return hub_utils.from_pretrained(model, checkpoint, folder, **options)


class KeepUnknownWords:
    """SentencePiece that leaves a word written ``<unk>`` alone, as luna-fairseq prepare corpus does."""

    def __init__(self, bpe: SentencepieceBPE) -> None:
        self.bpe = bpe

    @classmethod
    def around(cls, bpe: Any) -> Any:
        """The pieces of a hub; those that are not SentencePiece's as they are."""
        return cls(bpe) if isinstance(bpe, SentencepieceBPE) else bpe

    def encode(self, text: str) -> str:
        return " ".join(" <unk> ".join(self.bpe.encode(part) for part in UNKNOWN_WORD.split(text)).split())

    def decode(self, pieces: str) -> str:
        return self.bpe.decode(UNKNOWN_WORD.sub("\u2581<unk>", pieces))


class LunaHubInterface(RobertaHubInterface):
    """What ``LunaBertModel.from_pretrained`` returns.

    ``encode`` and ``decode`` are fairseq's. Wherever tokens are asked for, a sentence, a tuple of
    sentences, encoded symbols ``[N]`` or ``[B, N]``, or a list of any of these will do; a list is padded to
    one batch. ``train()`` and ``eval()`` switch dropout; it begins in evaluation mode.
    """

    bpe: Any

    def __init__(self, cfg: Any, task: Any, model: Any) -> None:
        super().__init__(cfg, task, model)
        self.bpe = KeepUnknownWords.around(self.bpe)
        dictionary = task.source_dictionary
        # Padding of the dictionary, which fairseq-preprocess adds, is in no text either.
        filler = [i for i in range(len(dictionary)) if dictionary[i].startswith("madeupword")]
        self._control = torch.tensor([*range(dictionary.nspecial), dictionary.index("<mask>"), *filler])

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = False) -> Tensor:
        self._check_pieces()
        return super().encode(sentence, *addl_sentences, no_separator=no_separator)

    def decode(self, tokens: Tensor) -> Union[str, List[Any]]:
        """The text of symbols ``[N]`` (fairseq's; several sentences are a list); of ``[B, N]`` a list, one a row."""
        self._check_pieces()
        if tokens.dim() == 2:
            return [self.decode(row) for row in tokens]
        return super().decode(tokens[tokens.ne(self.task.source_dictionary.pad())])

    def _check_pieces(self) -> None:
        if self.bpe is None:
            raise ValueError(
                "no pieces are known for this model: give from_pretrained bpe= and its files, or the folder of "
                "dict.txt and sentencepiece.model as data_name_or_path"
            )

    def batch(self, inputs: Union[Text, Sequence[Text]]) -> Tensor:
        """Symbols ``[B, N]`` int64, padded on the right."""
        if isinstance(inputs, Tensor):
            return inputs if inputs.dim() == 2 else inputs.unsqueeze(0)
        if isinstance(inputs, (str, tuple)):
            inputs = [inputs]
        if not inputs:
            raise ValueError("an empty list: give at least one sentence")
        rows: List[Tensor] = []
        for item in inputs:
            if isinstance(item, Tensor):
                rows.append(item.cpu())
            else:
                rows.append(self.encode(*([item] if isinstance(item, str) else item)))
        return collate_tokens(rows, self.task.source_dictionary.pad())

    def extract_features(
        self,
        tokens: Union[Text, Sequence[Text]],
        return_all_hiddens: bool = False,
        return_packed: bool = False,
    ) -> Any:
        """States of the last layer.

        Args:
            tokens: see the class.
            return_all_hiddens: return a list, the input of the first layer and the output of each.
            return_packed: also return P after the last layer.

        Returns:
            ``[B, N, D]`` (or the list of such); with ``return_packed`` a pair of that and ``[B, L, D]``, where
            L is the projection length or, if that is shorter, N.

        Raises:
            ValueError: for more symbols than the model has positions.
        """
        tokens = self.batch(tokens).to(self.device)
        x, extra = self.model(tokens, features_only=True, return_all_hiddens=return_all_hiddens)
        if return_all_hiddens:
            x = [state.transpose(0, 1) for state in extra["inner_states"]]
        return (x, extra["packed_features"]) if return_packed else x

    def predict(self, head: str, tokens: Union[Text, Sequence[Text]], return_logits: bool = False) -> Tensor:
        """Log-probabilities of the classes; the plain score of a head with a single output.

        Args:
            head: name of a classification head.
            tokens: see the class.
            return_logits: return the scores before the softmax, or the values of a regression.

        Returns:
            ``[B, num_classes]``.

        Raises:
            ValueError: if the model has no such head, or for more symbols than it has positions.
        """
        tokens = self.batch(tokens)
        logits, _ = self.model(tokens.to(self.device), classification_head_name=head)
        # One output is a regression or the score of a candidate: its softmax would always be 1.
        return logits if return_logits or logits.size(-1) == 1 else F.log_softmax(logits, dim=-1)

    def fill_mask(
        self, masked_input: Union[str, Sequence[str]], topk: int = 5
    ) -> Union[List[Tuple[str, float, str]], List[List[Tuple[str, float, str]]]]:
        """The most probable pieces in the place of ``<mask>``.

        Args:
            masked_input: a text with ``<mask>`` in it once, or a list of such.
            topk: how many guesses to return, best first.

        Returns:
            ``(the text filled in, probability, the piece)`` for each guess; a list of such lists for a list.
            Control symbols are never guessed; the probabilities are over the whole dictionary.

        Raises:
            ValueError: if ``<mask>`` is missing or there twice, for more symbols than the model has
                positions, or a ``topk`` beyond the dictionary.
        """
        self._check_pieces()
        texts = [masked_input] if isinstance(masked_input, str) else list(masked_input)
        dictionary = self.task.source_dictionary
        if not 1 <= topk <= len(dictionary) - len(self._control):
            raise ValueError(f"topk is {topk}: choose from 1 to {len(dictionary) - len(self._control)}")
        rows = []
        for text in texts:
            if text.count("<mask>") != 1:
                raise ValueError(f"{text!r} holds <mask> {text.count('<mask>')} times: give it exactly once")
            pieces = " <mask> ".join(self.bpe.encode(part.rstrip()) for part in text.split("<mask>"))
            line = f"<s> {pieces} </s>"
            rows.append(dictionary.encode_line(line, append_eos=False, add_if_not_exist=False).long())
        tokens = self.batch(rows)
        tokens = tokens.to(self.device)

        with torch.no_grad(), utils.model_eval(self.model):
            logits, _ = self.model(tokens, masked_tokens=tokens.eq(self.task.mask_idx))
        probabilities = logits.float().softmax(dim=-1)
        values, indices = probabilities.index_fill(1, self._control.to(self.device), 0.0).topk(topk)

        results = []
        for text, row_values, row_indices in zip(texts, values.tolist(), indices.tolist(), strict=True):
            guesses = []
            for value, index in zip(row_values, row_indices, strict=True):
                symbol = dictionary[index]
                piece = self.bpe.decode(symbol)
                if symbol.startswith("\u2581"):  # SentencePiece's sign for a space, lost at the start of a text
                    piece = f" {piece}"
                place = " <mask>" if " <mask>" in text else "<mask>"  # a piece brings its space along
                guesses.append((text.replace(place, piece), value, piece))
            results.append(guesses)
        return results[0] if isinstance(masked_input, str) else results
