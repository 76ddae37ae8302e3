"""What an import costs, in which order imports may come, and that none goes in a circle."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

import pytest

import luna_fairseq
from luna_fairseq import cli, plugin
from support.forks import REAL
from support.running import ROOT, USER_DIR, run_command

PACKAGE = Path(luna_fairseq.__file__).parent


def _python(code: str, *arguments: str) -> str:
    """Run a program in a new interpreter; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


HEAVY = """import sys
heavy = "torch fairseq hydra omegaconf sentencepiece sklearn PIL matplotlib"
print(sorted(set(heavy.split()) & set(sys.modules)))
"""


def test_the_package_alone_imports_nothing_heavy() -> None:
    assert _python(f"import luna_fairseq\n{HEAVY}print('numpy' in sys.modules)") == "[]\nFalse\n"


def test_help_version_and_user_dir_answer_without_torch() -> None:
    """Every command's and every kind's help; the commands begin their work with the import of torch."""
    lines = _python(
        "import contextlib, io, sys\n"
        "from luna_fairseq import cli\n"
        "from luna_fairseq.commands import fetch, prepare, table\n"
        "names = [[name] for name in cli.COMMANDS]\n"
        "for group, kinds in ('fetch', fetch.NAMES), ('prepare', prepare.KINDS), ('table', table.EXPERIMENTS):\n"
        "    names += [[group, kind] for kind in kinds]\n"
        "for words in [[], *names]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        "        cli.main([*words, '--help'])\n"
        "    assert said.getvalue().startswith(' '.join(['usage: luna-fairseq', *words])), (words, said.getvalue())\n"
        "print(len(names))\n"
        "with contextlib.suppress(SystemExit):\n"
        "    cli.main(['--version'])\n"
        f"for name in ('user-dir', 'configs', 'scripts'):\n    cli.main([name])\n{HEAVY}\n"
    ).splitlines()
    assert int(lines[0]) >= 15
    beside = ROOT if Path(USER_DIR).parent == ROOT else Path(USER_DIR, "share")  # of a clone, or of a wheel
    folders = [USER_DIR, str(beside / "configs"), str(beside / "scripts")]
    assert lines[1:] == [f"luna-fairseq {luna_fairseq.__version__}", *folders, "[]"]


def test_python_m_is_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["user-dir"], ["configs"], ["scripts"], ["--version"], ["--help"]):
        said = [
            subprocess.run([*command, *arguments], capture_output=True, text=True, check=True).stdout
            for command in ([REAL / "luna-fairseq"], [REAL / "python", "-m", "luna_fairseq"])
        ]
        assert said[0] == said[1] != ""
    for wrong in (["prepare", "nothing"], ["nothing"], []):
        with pytest.raises(SystemExit) as ended:
            cli.main(wrong)
        assert ended.value.code == 2 and "usage: luna-fairseq" in capsys.readouterr().err


def test_the_arithmetic_needs_torch_alone() -> None:
    said = _python(
        "import sys\n"
        "sys.modules['fairseq'] = sys.modules['hydra'] = sys.modules['omegaconf'] = None\n"  # an import of it fails
        "import torch\n"
        "from luna_fairseq import ops\n"
        "from luna_fairseq.ops import naive\n"
        "x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)\n"
        "print(torch.allclose(ops.attend(x, x, x)[1, 2], naive.naive_attention(*[x[1, 2]] * 3)))\n"
    )
    assert said == "True\n"


# Something of the plugin, of fairseq, or both, before fairseq is told of --user-dir.
ORDERS = {
    "fairseq alone": "import fairseq.tasks",
    "the package, then fairseq": "import luna_fairseq, fairseq",
    "fairseq, then the package": "import fairseq, luna_fairseq",
    "ops": "import luna_fairseq.ops",
    "modules": "from luna_fairseq.modules import LunaAttention",
    "a model": "from luna_fairseq.models.luna import LunaModel",
    "a task": "import luna_fairseq.tasks.long_range_arena",
    "a criterion, then the optimizer": "import luna_fairseq.criterions.lra_cross_entropy, luna_fairseq.optim",
    "a command": "import luna_fairseq.commands.average, luna_fairseq.checkpoint_files",
    "the plugin twice": "from luna_fairseq import plugin; plugin.load(); plugin.load()",
}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["a model"], id="a model"),
        pytest.param(list(ORDERS), id="all", marks=pytest.mark.long),
    ],
)
def test_whatever_the_order_of_imports_everything_is_registered(names: List[str]) -> None:
    """By --user-dir; by a model or a task alone; and fairseq's models do not make every logger talk."""
    orders = {name: ORDERS[name] for name in names}
    program = f"""
import os, sys, logging
import torch, torch._dynamo, hydra, omegaconf, sacrebleu, pytorch_optimizer  # once; all but fairseq and the plugin

def check(name, order):
    exec(order, {{}})
    from argparse import Namespace
    import fairseq
    from fairseq import criterions, models, optim, registry, tasks, utils
    if name not in ("a model", "a task", "the plugin twice"):
        utils.import_user_module(Namespace(user_dir={USER_DIR!r}))
    else:  # asked for by its name, without --user-dir
        assert logging.getLogger().level == logging.WARNING
    known = {{"luna", "luna_base_untied", "luna_bert", "luna_large_2048", "lra", "luna_lra_pf128"}}
    assert known <= set(models.MODEL_REGISTRY)
    assert {{"lra-text", "lra-image", "long_range_arena"}} <= set(tasks.TASK_REGISTRY)
    for task in ("translation", "masked_lm", "sentence_prediction", "sentence_ranking"):
        assert tasks.TASK_REGISTRY[task].__module__.startswith("luna_fairseq."), task
    groups = {{group: value["registry"] for group, value in registry.REGISTRIES.items()}}
    assert "apollo" in groups["optimizer"] and "milestone" in groups["lr_scheduler"]
    assert "lra_cross_entropy" in groups["criterion"]
    from luna_fairseq import compat
    assert len(compat.REPAIRS) > 30 and all(repair.on for repair in compat.REPAIRS)

for name, order in {orders!r}.items():
    child = os.fork()
    if child == 0:
        try:
            check(name, order)
        except BaseException as error:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"failed: {{name}}")
print("all")
"""
    assert _python(program) == "all\n"


def test_another_folder_named_as_the_package_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "luna_fairseq").mkdir()
    (tmp_path / "luna_fairseq" / "__init__.py").touch()
    assert str(tmp_path / "luna_fairseq") not in luna_fairseq.__path__
    said = run_command("fairseq-train", "/data", "--user-dir", tmp_path / "luna_fairseq", "--arch", "luna", code=-1)
    assert "invalid choice: 'luna'" in said  # it is imported, and has no models


def _imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports when it is imported itself, not inside of a function."""

    def statements(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield child
                yield from statements(child)

    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_import_goes_in_a_circle() -> None:
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph: Dict[str, Set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        for name in _imports(path):
            known = name if name in files else name.rpartition(".")[0]  # a module, or a name in one
            # A package's own __init__ makes the names of its parts known.
            if known in files and known not in (module, "luna_fairseq"):
                graph[module].add(known)
    assert len(graph) > 50 and "luna_fairseq.modules" in graph["luna_fairseq.models.luna"]
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(graph)


def test_the_names_that_users_import_are_there() -> None:
    """As the documentation writes them."""
    from luna_fairseq.models.lra import LRAModel
    from luna_fairseq.models.luna import LunaModel
    from luna_fairseq.models.luna_bert import LunaBertModel
    from luna_fairseq.modules import CausalLunaAttention, LunaAttention

    everything: Any = (LRAModel, LunaModel, LunaBertModel, CausalLunaAttention, LunaAttention)
    assert all(callable(one) for one in everything)


def test_loading_the_plugin_registers_everything() -> None:
    """--user-dir finds a file of models/ or tasks/ by itself; what loads the plugin alone has only the list."""
    for package in ("criterions", "models", "tasks"):
        for path in PACKAGE.joinpath(package).glob("*.py"):
            if re.search(r"^@?register_|^    @register_|extend_task\(", path.read_text(), re.M):
                assert f"luna_fairseq.{package}.{path.stem}" in plugin._REGISTERING
