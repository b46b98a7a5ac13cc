"""A model of the Hugging Face hub by name: hf:ORG/NAME[/FILE][@REVISION] -> its ONNX file in the client's cache.

The hub's own client (`huggingface_hub`, the extra `hub`) fetches and caches; what is fetched is the ONNX file, the
weights that it names, and the tokenizer, generation configuration and chat templates beside it; of a config.json, it
alone. Without a connection (or with HF_HUB_OFFLINE=1) the cache alone is read.

A repository is a stranger's: names of files that lead out of its folder are refused, sizes are compared with what the
hub states and with the room on the disk before anything is fetched, and nothing of it is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from hetero_sd.compile.hub_name import (
    CONFIG,
    DEFAULT_REVISION,
    SCHEME,
    HubSource,
    leads_out,
    parse_source,
)
from hetero_sd.progress import Progress
from hetero_sd.runtime.text.tokenizer import FILES, MORE_TEMPLATES, MOST_BYTES
from targets.errors import UserError
from targets.hub_cache import repository_folder, snapshot_folder

_STEMS = ("model", "decoder_model_merged", "decoder_with_past_model", "decoder_model")  # the first that is there
_FOLDERS = ("", "onnx")  # where exporters and hubs put them
_BESIDE = (*FILES, CONFIG, "genai_config.json")
_MOST_FILES = 10_000  # of a repository
_MOST_SHOWN = 12
_LONGEST_ANSWER_S = 30.0


def files_of(given: Sequence[Any], variant: str | None, progress: Progress) -> list[Any]:
    """The files that names of the hub ask for; other paths, early exits and None as they are.

    Raises:
        UserError: as `fetch`; a variant, and no name of the hub.
    """
    if variant and not any(str(one).startswith(SCHEME) for one in given):
        raise UserError("--variant chooses among the files of a repository, and no model here is hf:ORG/NAME")
    return [fetch(str(one), variant, progress) if str(one).startswith(SCHEME) else one for one in given]


def fetch(
    text: str, variant: str | None, progress: Progress, endpoint: str | None = None, cache: Path | None = None
) -> Path:
    """Fetch what a name asks for, or find it in the cache; returns the ONNX file, or the config.json.

    Args:
        text: as `parse_source` reads it.
        variant: which of several files, as hubs name them: q4 is model_q4.onnx; None: model.onnx.
        progress: of the download.
        endpoint: the hub's address, None: the client's own (HF_ENDPOINT).
        cache: the client's cache, None: its own (HF_HUB_CACHE).

    Raises:
        UserError: the client is not installed, there is no such repository, file or variant, the repository is not
            open to this user, it is not in the cache and there is no connection, or its files do not fit.
    """
    source = parse_source(text)
    try:
        import huggingface_hub
        import huggingface_hub.constants  # it loads its modules when asked for
        import huggingface_hub.errors
    except ImportError:
        raise UserError(f"{text}: the hub's client is not installed: pip install huggingface_hub") from None
    hub: Any = huggingface_hub
    hub.logging.set_verbosity_error()  # what is tried again is its own affair
    with progress.step(f"fetch {text}"):
        repository = _listed(hub, source, text, endpoint, cache)
        name = choose_file(list(repository.sizes), source, variant, text, repository.where)
        path = repository.get([name])
        return path if path.name == CONFIG else _with_companions(repository, name, path, text)


@dataclass(frozen=True)
class _Repository:
    """Files of one revision: their sizes by name, and how to get some of them; returns the first one's path.

    `where` says that only the cache was looked at, and why; "" where the hub listed them.
    """

    sizes: dict[str, int]
    get: Callable[[list[str]], Path]
    where: str = ""


def _with_companions(repository: _Repository, name: str, path: Path, text: str) -> Path:
    """Get the weights that an ONNX file names, and what lies beside it or in the repository's first folder."""
    from passes.onnx.load.read_proto import read_proto

    try:
        graph = read_proto(path).graph
    except ValueError:
        return path  # refused as every other file is, with the reason
    folder, missing = PurePosixPath(name).parent, []
    wanted = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"} - {path.name}
    external = [str(folder / location) for location in sorted(wanted) if not leads_out(location)]
    missing = [n for n in external if n not in repository.sizes]
    if missing:
        where = repository.where or " in the repository: they were not published with it"
        raise UserError(f"{text}: its weights {missing[0]} are not{where}")
    folders = {str(folder / "x")[:-1], ""}
    beside = [n for n in repository.sizes if n in {f + b for f in folders for b in _BESIDE}]
    beside += [n for n in repository.sizes if n.startswith(f"{MORE_TEMPLATES}/") and n.endswith(".jinja")]
    large = next((n for n in beside if repository.sizes[n] > MOST_BYTES), None)
    if large is not None:
        raise UserError(f"{text}: {large} has {repository.sizes[large]} bytes, which no tokenizer has")
    if external or beside:
        repository.get([*external, *beside])
    return path


def choose_file(names: list[str], source: HubSource, variant: str | None, text: str, where: str = "") -> str:
    """The file that is meant; `where` follows what is not there.

    Raises:
        UserError: it is not there, or several could be meant; the message lists what there is.
    """
    onnx = [n for n in sorted(names) if n.endswith(".onnx")]
    if source.file is not None:
        if variant is not None:
            raise UserError(f"{text} names a file; leave --variant out")
        if source.file in names:
            return source.file
        raise UserError(f"{text}: there is no {source.file}{where}; {_shown(onnx)}")
    tail = "" if variant is None else f"_{variant}"
    for stem in _STEMS:
        for folder in _FOLDERS:
            name = str(PurePosixPath(folder) / f"{stem}{tail}.onnx")
            if name in names:
                return name
    what = "no model.onnx" if variant is None else f"no variant {variant}"
    raise UserError(f"{text}: there is {what}{where}; {_shown(onnx)}")


def _shown(onnx: list[str]) -> str:
    more = f" and {len(onnx) - _MOST_SHOWN} more" if len(onnx) > _MOST_SHOWN else ""
    if not onnx:
        return "it has no ONNX file at all: export it (optimum-cli export onnx), or take a repository that has some"
    return f"it has {', '.join(onnx[:_MOST_SHOWN])}{more}"


def _listed(hub: Any, source: HubSource, text: str, endpoint: str | None, cache: Path | None) -> _Repository:
    """The repository as the hub lists it, or as the cache has it where the hub cannot be reached."""
    if hub.constants.HF_HUB_OFFLINE:
        return _cached(hub, source, text, cache, "HF_HUB_OFFLINE is set")
    errors = hub.errors
    agree = f"{text}: its makers ask you to agree to terms first, on the hub's page of it; then `hf auth login`"
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=_LONGEST_ANSWER_S
        )
    except errors.GatedRepoError:
        raise UserError(agree) from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{text}: the hub has no such repository, or it is private: `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{text}: the repository has no revision {source.revision}") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"{text}: the hub answers {_status(error)}") from None
    except Exception as error:  # no connection: each version of the client raises what its HTTP library raises
        return _cached(hub, source, text, cache, f"no connection to the hub ({_one_line(error)})")
    sizes = {str(s.rfilename): int(s.size or 0) for s in (info.siblings or [])[: _MOST_FILES + 1]}
    if len(sizes) > _MOST_FILES:
        raise UserError(f"{text}: the repository has more than {_MOST_FILES} files")
    strange = next((n for n in sizes if leads_out(n)), None)
    if strange is not None:
        raise UserError(f"{text}: the repository has a file named {strange!a}, which leads out of its folder")

    def get(names: list[str]) -> Path:
        paths = []
        folder = Path(cache or hub.constants.HF_HUB_CACHE)
        _check_room(text, sum(sizes[n] for n in names), folder)
        for name in names:
            try:
                revision = source.revision or DEFAULT_REVISION  # not info.sha: the cache keeps the name for later
                done = hub.hf_hub_download(source.repo, name, revision=revision, endpoint=endpoint, cache_dir=cache)
            except errors.GatedRepoError:  # such a repository's files are listed to everybody
                raise UserError(agree) from None
            except Exception as error:  # of the client, of its HTTP library, of the disk
                raise UserError(f"{text}: cannot fetch {name}: {_one_line(error)}") from None
            if info.sha not in Path(done).parts:
                raise UserError(f"{text}: the repository was changed while it was fetched: run the command again")
            paths.append(_sized(Path(done), name, sizes[name], text))
        return paths[0]

    return _Repository(sizes, get)


def _cached(hub: Any, source: HubSource, text: str, cache: Path | None, why: str) -> _Repository:
    repository = repository_folder(Path(cache or hub.constants.HF_HUB_CACHE), source.repo)
    folder = snapshot_folder(repository, source.revision or DEFAULT_REVISION)
    if not folder.is_dir():
        raise UserError(f"{text}: {why}, and it is not in the cache")
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return _Repository(sizes, lambda names: folder / names[0], f" in the cache ({why})")


def _sized(path: Path, name: str, size: int, text: str) -> Path:
    if path.stat().st_size != size:
        raise UserError(f"{text}: {name} has {path.stat().st_size} bytes, the hub states {size}: fetch it again")
    return path


def _check_room(text: str, needed: int, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{text}: {needed} bytes to fetch, {free} are free in {folder}: set HF_HOME to another disk")


def _status(error: Any) -> str:
    """The status of an answer, and what the hub says about it."""
    status = int(error.response.status_code)
    login = ": `hf auth login`" if status == HTTPStatus.UNAUTHORIZED else ""
    said = f" ({_one_line(error.server_message)})" if error.server_message else ""
    return f"with status {status}{said}{login}"


def _one_line(said: BaseException | str) -> str:
    shown = " ".join(str(said).split())[:200] or type(said).__name__
    return "".join(c if c.isprintable() else "?" for c in shown)
