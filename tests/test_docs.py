"""README and docs say what is so: Python runs, commands are commands, links lead somewhere."""

import importlib
import importlib.util
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium as gym
import pytest

from awsgd_rl import cli
from awsgd_rl.agents import ALGORITHMS
from awsgd_rl.cli_bench import BENCHES
from awsgd_rl.envs import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
# Packages that this one does not depend on: a block that imports one runs where it is installed.
OPTIONAL = ("lightning", "transformers")
FENCE = re.compile(
    r"(<!-- not run: [^\n]+ -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that a page registers is not there for the next one."""
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    code: str
    section: str
    """The heading of level 2 that it is under."""
    run: bool
    """Whether it is not marked with `<!-- not run: why -->`."""
    file: str | None
    """The file that its title names."""


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = [
        (found.start(), found[1]) for found in re.finditer(r"^## (.*)$", text, re.MULTILINE)
    ]
    blocks = []
    for found in FENCE.finditer(text):
        above = [title for start, title in headings if start < found.start()]
        title = re.search(r'title="([^"]+)"', found[2])
        language = found[2].split(" ")[0]
        section = above[-1] if above else ""
        blocks.append(Block(language, found[3], section, not found[1], title and title[1]))
    return blocks


BLOCKS = {page: blocks_of(page) for page in PAGES}


def needs(block: Block) -> str | None:
    imports = (rf"^\s*(import|from) {name}\b" for name in OPTIONAL)
    found = (re.search(pattern, block.code, re.MULTILINE) for pattern in imports)
    return next((name for name, is_there in zip(OPTIONAL, found, strict=True) if is_there), None)


def commands_of(block: Block) -> list[str]:
    """The lines of a shell block, without comments; a line that ends in a backslash goes on."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.split("#")[0].strip()]


def run_python(blocks: list[Block], page: str, folder: Path) -> dict[str, Any]:
    """Run blocks in order, each with the names of those before it."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        if block.file is not None:
            (folder / block.file).write_text(block.code)
        code = compile(block.code, f"{page}, {block.section}", "exec")
        if block.run:
            exec(code, names)
    return names


def check_supervised(names: dict[str, Any]) -> None:
    logged = {name.removeprefix("sampling/"): x for name, x in names["logged"].items()}
    assert logged["variance_ratio"] > 5.0
    assert logged["distance"] < logged["uniform_distance"]
    assert names["proposal"].tau.diff().item() != 0.0


def check_supervised_tutorial(names: dict[str, Any]) -> None:
    assert names["by_class"] < names["uniform"]
    assert names["by_table"] < names["uniform"]
    assert names["weighted"].item() == pytest.approx(names["y"].double().mean().item(), rel=0.1)
    assert names["positive"].mean() > 5 * names["y"].double().mean()


def check_rl_tutorial(names: dict[str, Any]) -> None:
    assert names["found"].estimate < 0.01
    assert names["found"].naive_episodes > 10 * names["found"].episodes


def check_integration(names: dict[str, Any]) -> None:
    assert abs(names["mean"] - names["f"].mean()) < 5 * names["error"]


def check_control_variates(names: dict[str, Any]) -> None:
    assert names["with_it"].standard_error < 0.2 * names["without"].standard_error
    assert abs(names["with_it"].mean - names["f"].mean()) < 5 * names["with_it"].standard_error


def check_time_aware(names: dict[str, Any]) -> None:
    assert names["proposal"].tau.softmax(0)[1] < 0.4


def check_hashing(names: dict[str, Any]) -> None:
    assert (names["theta"] - 1.0).abs().max() < 0.3


CHECKS = {
    "docs/supervised.md": check_supervised,
    "docs/tutorials/reinforcement-learning.md": check_rl_tutorial,
    "docs/tutorials/supervised.md": check_supervised_tutorial,
    "docs/methods/integration.md": check_integration,
    "docs/methods/control-variates.md": check_control_variates,
    "docs/methods/time-aware.md": check_time_aware,
    "docs/methods/hashing.md": check_hashing,
}
"""What a page promises of its own example."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]])
def test_python_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks go on from those before them, in README.md within a section."""
    monkeypatch.chdir(tmp_path)
    plain = [b for b in BLOCKS[page] if b.language == "python" and needs(b) is None]
    if page == "README.md":
        for section in dict.fromkeys(block.section for block in plain):
            run_python([block for block in plain if block.section == section], page, tmp_path)
        return
    names = run_python(plain, page, tmp_path)
    CHECKS.get(page, lambda names: None)(names)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warnings of their own are not ours
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("page", "package"),
    sorted({(page, needs(b)) for page in PAGES for b in BLOCKS[page] if needs(b) is not None}),
)
def test_python_with_optional_packages_runs(
    page: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = [b for b in BLOCKS[page] if b.language == "python" and needs(b) in {None, package}]
    names = run_python(blocks, page, tmp_path)
    if page == "docs/supervised.md":
        trainer = names["trainer"]
        proposal = names["table"] if package == "lightning" else trainer.proposal
        steps = trainer.global_step if package == "lightning" else trainer.state.global_step
        assert steps == len(proposal.scores) // (100 if package == "lightning" else 8)
        assert len(proposal.scores.unique()) > 2


# How much there is to do, by command: what a page asks for, or the default, is made this little.
SMALL = {
    "bench": {"--quick": None},
    "compare": {"--maps": 2, "--episodes": 100, "--jobs": 1},
    "evaluate": {"--episodes": 100},
    "train": {"--total-episodes": 100, "--eval-episodes": 10},
    "tune": {
        "--maps": 1,
        "--check-maps": 1,
        "--episodes": 100,
        "--trials": 2,
        "--jobs": 1,
    },
}
STEPS = {"--steps": 1000, "--total-timesteps": 1000}
"""What may take the place of episodes."""


def made_small(line: str) -> list[str]:
    """The words of a command, with less to do; one that goes on does what it was told before."""
    program, command, *words = shlex.split(line, comments=True)
    # One with --rare has no number of episodes, but an error to reach.
    sizes = {} if {"--resume", "--rare"} & set(words) else SMALL.get(command, {})
    for option, number in STEPS.items():
        if option in words:
            sizes = {k: v for k, v in sizes.items() if not k.endswith("episodes")}
            sizes |= {option: number}
    for option, number in sizes.items():
        if option not in words:
            words += [option]
            words += [] if number is None else [str(number)]
        elif number is not None:
            words[words.index(option) + 1] = str(number)
    return [program, command, *words]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.language == "bash" for block in BLOCKS[page])]
)
def test_commands_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go on from one another, with less to do than the page has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setattr("awsgd_rl.benchmarks.trial.FINAL_EPISODES", 5)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    for block in BLOCKS[page]:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.code)
        if block.language != "bash" or not block.run:
            continue
        for line in commands_of(block):
            line = line.removeprefix("PYTHONPATH=. ")
            if not line.startswith("awsgd-rl "):
                continue  # installs, or is of another program
            if "--engine ray" in line and importlib.util.find_spec("ray") is None:
                continue
            words = made_small(line)[1:]
            quiet = [] if words[0] == "list" or "--help" in words else ["--quiet"]
            assert cli.main([*words, *quiet]) == cli.DONE, line
            assert opened or "--open" not in words


class Read(BaseException):
    """Raised in place of going on, once a command's arguments are read."""


def check_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command read its arguments, and look up the names that it reads later."""
    name, *arguments = shlex.split(line)
    if name.startswith("--"):
        assert name in ("--help", "--version")
        return
    module = importlib.import_module(f"awsgd_rl.cli_{name}")
    if "--help" in arguments:
        return
    read: list[Any] = []
    original = module.parse

    def parse(*arguments: Any) -> Any:
        read.extend(original(*arguments))
        raise Read

    monkeypatch.setattr(module, "parse", parse)
    if name == "train":  # the options are those of the run to go on with, which is not there
        monkeypatch.setattr(module, "stored_config", lambda argv: {})
    with pytest.raises(Read):
        module.main(arguments)
    for part in read:
        options = vars(part)
        assert options.get("preset") in {None, *PRESETS}, line
        assert options.get("algo") in {None, *ALGORITHMS}, line
        if name == "bench":
            assert options.get("name", "NAME") in {"NAME", *BENCHES}, line


MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
)
OTHER_COMMANDS = (
    "python3 -m venv ",
    ". .venv/bin/activate",
    "pip ",
    "tensorboard ",
    "torchrun ",
    "ray ",
)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]])
def test_commands_are_commands(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in BLOCKS[page]:
        assert block.language in ("python", "bash", "text", "json"), f"{page}: {block.code}"
        if block.language != "bash":
            continue
        for line in commands_of(block):
            program, *words = shlex.split(re.sub(r"^(\w+=\S+ )+", "", line), comments=True)
            if program == "awsgd-rl":
                check_command(shlex.join(words), monkeypatch)
            elif program == "make":
                assert set(words) <= MAKE_TARGETS, line
            elif program == "python" and words[0] == "-m":
                assert importlib.util.find_spec(words[1]) is not None, line
            else:
                assert line.startswith(OTHER_COMMANDS), line


@pytest.mark.parametrize("page", PAGES)
def test_names_in_text_exist(page: str) -> None:
    """Extras to install, and targets of make, are named in the text too."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"awsgd-rl\[([\w-]+)\]", text)) <= EXTRAS
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= MAKE_TARGETS
    for arguments in re.findall(r"^<!-- awsgd-rl (.+) -->$", text, re.MULTILINE):
        assert arguments.split()[0] in {*cli.COMMANDS, "--help"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """As the repository is looked at; `make docs` checks the site's."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for path, anchor in LINK.findall(FENCE.sub("", text)):
        if path.startswith(("http:", "https:")):
            continue
        target = (ROOT / page).parent.joinpath(path) if path else ROOT / page
        assert target.exists(), path
        if anchor and "reference" not in path:
            assert anchor in {f"#{slug(title)}" for title in headings(target)}, path + anchor


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)


def slug(title: str) -> str:
    """An anchor, as both the site and the repository's page make it of a plain title."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def test_the_loop_has_at_most_ten_lines() -> None:
    lines = BLOCKS["docs/supervised.md"][0].code.strip().splitlines()
    assert len(lines) - next(i for i, x in enumerate(lines) if x.startswith("proposal")) <= 10


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"^\s+- (?:\w+: )?([\w/-]+\.md)$", text, re.MULTILINE))
    assert listed == {page.removeprefix("docs/") for page in PAGES if page != "README.md"}


# Modules that are not of the reference, since no user needs them: how something else is done.
INTERNAL = (
    "_version",
    "*_kernels",
    "cli*",  # its help is of the reference
    "exact_moments",
    "factorisation_data",
    "plots_anatomy",
    "plots_evaluation",
    "plots_factorisation",
    "ray_connection",
    "replay_fields",
    "replay_file",
    "replay_storage",
    "report_*",
    "urns",
    *(
        f"agents.{name}"
        for name in (
            "engine",
            "history",
            "memory_state",
            "module_state",
            "networks",
            "outcome_*",
            "policy_networks",
            "progress",
            "random_states",
            "rollout*",
            "row_memory",
            "search_spaces",
            "spaces",
            "stable_baselines_listener",
            "stable_baselines_random",
            "stable_baselines_replay",
            "stable_baselines_training",
            "tables",
            "training_file",
            "trajectories",
        )
    ),
)


def test_every_module_is_in_the_reference() -> None:
    pages = (ROOT / page for page in PAGES if page.startswith("docs/reference/"))
    found = [re.findall(r"^::: awsgd_rl\.([\w.]+)$", x.read_text(), re.MULTILINE) for x in pages]
    documented = {name for names in found for name in names}
    modules = {path.stem for path in ROOT.glob("awsgd_rl/*.py")} - {"__init__"}
    for folder in ("agents", "envs"):
        names = {path.stem for path in ROOT.glob(f"{folder}/*.py")} - {"__init__"}
        modules |= {f"{folder}.{name}" for name in names}
    hidden = {name for name in modules if any(fnmatch(name, pattern) for pattern in INTERNAL)}
    assert modules - hidden - documented == set(), "add them to docs/reference/, or to INTERNAL"
    assert hidden & documented == set()


@pytest.fixture(scope="module")
def hooks() -> Any:
    """The hooks of the site, which is built by `make docs`."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/theme/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_at(path: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=path))


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("a.md", "../benchmarks/results/replay/replay.png", "results/replay/replay.png"),
        ("a/b.md", "../../benchmarks/results/replay", "../results/replay/results.json"),
        ("a/b.md", "../../benchmarks/results/replay/", "../results/replay/results.json"),
        ("a/b.md", "../other.md#replay", "../other.md#replay"),
    ],
)
def test_links_to_results_are_of_the_site(hooks: Any, page: str, link: str, expected: str) -> None:
    made = hooks.on_page_markdown(f"![x]({link})", page_at(page), None, None)
    assert made == f"![x]({expected})"


def test_a_command_is_printed(hooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = hooks.on_page_markdown("a\n<!-- awsgd-rl --version -->\nb", page_at("a.md"), None, None)
    assert re.fullmatch(r"a\n```text\n\$ awsgd-rl --version\nawsgd-rl [\d.]+\n```\nb", text)


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        "<img alt='a > b' src='http://example.org/a.png'>",
    ],
)
def test_a_page_that_loads_from_elsewhere_is_refused(hooks: Any, tag: str) -> None:
    link = '<a href="https://example.org">to read on</a><script src="a.js"></script>'
    link += '<link rel="canonical" href="http://127.0.0.1:8000/a.html">'
    assert hooks.on_post_page(link, page_at("a.md"), None) == link
    with pytest.raises(hooks.PluginError, match="loads"):
        hooks.on_post_page(link + tag, page_at("a.md"), None)
