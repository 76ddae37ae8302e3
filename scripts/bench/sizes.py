"""What is compared, and in which sizes: the usual ones, those of ``--full`` and those of ``--smoke``."""

from typing import Any, Dict

import torch

TRANSLATION = ("transformer_wmt_en_de", "luna_base_tied", "luna_base_untied")

MASKED_LM = ("roberta_base", "luna_base_512", "luna_base_2048")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SIZES: Dict[str, Dict[str, Any]] = {
    "": dict(
        dim=512, heads=8, projection_lengths=(16, 32, 128, 256), tokens=16384, transcription_up_to=2048,
        lengths=(128, 256, 512, 1024, 2048, 4096, 8192, 16384), vocabulary=8000, words=4096,
        document_lengths=(32, 1024, 4096), growing_documents=(4096, 8192, 16384), generation_words=1000,
        blocks={512: "luna_base_512", 2048: "luna_base_2048"}, block_words=2048,
        output_lengths=(25, 250, 2000),
    ),
    "full": dict(
        dim=1024, heads=16, projection_lengths=(16, 32, 128, 256), tokens=65536, transcription_up_to=0,
        lengths=(1024, 2048, 4096, 8192, 16384, 32768, 65536), vocabulary=40600, words=16384,
        document_lengths=(32, 1024, 4096), growing_documents=(4096, 8192, 16384), generation_words=10000,
        blocks={512: "luna_base_512", 2048: "luna_base_2048"}, block_words=16384,
        output_lengths=(25, 250, 2000),
    ),
    "smoke": dict(
        dim=16, heads=2, projection_lengths=(4, 8), tokens=256, transcription_up_to=128, lengths=(64, 128, 256),
        vocabulary=100, words=64, document_lengths=(8, 64), growing_documents=(64, 128),
        blocks={16: "luna_base_512"}, block_words=64, generation_words=20, output_lengths=(10,),
    ),
}  # fmt: skip

# For a smoke run: of the translation models, of the masked-LM models.
SMOKE_SIZES = [
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--decoder-layers 1 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16 --decoder-attention-heads 2".split(),
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2".split(),
]
