"""``luna-fairseq user-dir``, ``configs`` and ``scripts``: folders to write into other command lines."""

from typing import Dict, List

from luna_fairseq.cli import COMMANDS, shared_folder, user_dir
from luna_fairseq.console import help_parser

EXAMPLES: Dict[str, str] = {
    "user-dir": """    fairseq-train data-bin --user-dir "$(luna-fairseq user-dir)" --arch luna ...""",
    "configs": """    fairseq-hydra-train --config-dir "$(luna-fairseq configs)/translation" --config-name NAME""",
    "scripts": """    bash "$(luna-fairseq scripts)/multi30k.sh"                     what it does
    ln -s "$(luna-fairseq scripts)" "$(luna-fairseq configs)" .    scripts/... and configs/..., as in a clone""",
}


def main(prog: str, arguments: List[str]) -> int:
    """Print the folder that the last word of ``prog`` names; returns the exit code."""
    name = prog.split()[-1]
    parser = help_parser(prog, f"P{COMMANDS[name].help[1:]}.\n\n{EXAMPLES[name]}")
    parser.parse_args(arguments)
    try:
        print(user_dir() if name == "user-dir" else shared_folder(name))
    except FileNotFoundError as error:
        parser.exit(1, f"{prog}: {error}\n")
    return 0
