"""Boards from tables of untrusted input, by the types, ranges and keys that targets/device.py declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from targets.contradiction import contradiction
from targets.device import FORMAT, Board, Cluster, Core, Dram, Gpu, Power
from targets.errors import UserError
from targets.provenance import Provenance, expect_table, read_numbers, read_table, refuse_unknown

_MOST_CLUSTERS = 64


def board_from_json(data: object, where: str = "board") -> Board:
    """The board that ``Board.to_json`` wrote; checked like a board file, because a bundle is untrusted input.

    Raises:
        UserError: the data is not a board, or contradicts itself; ``where`` names its origin.
    """
    table = dict(expect_table(data, "", where))
    if table.pop("format", None) != FORMAT:
        raise UserError(f"{where}: this is not a board of format {FORMAT}; write it again with this version")
    return read_board(table, where, {})


def read_board(table: Mapping[str, Any], where: str, cores: Mapping[str, Any]) -> Board:
    """Make a board from nested tables, checking keys, types, ranges and contradictions.

    Args:
        table: name, description, clusters (a list of tables), gpu (optional), dram, power and factors (optional).
        where: the file or origin named in messages.
        cores: fact tables of known cores, for clusters that name their core instead of spelling it out.

    Raises:
        UserError: one line that says what is wrong and where.
    """
    refuse_unknown(table, ("name", "description", "clusters", "gpu", "dram", "power", "factors"), "", where)
    provenance: dict[str, Provenance] = {}
    entries = table.get("clusters")
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST_CLUSTERS:
        raise UserError(f"{where}: clusters must be a list of 1 to {_MOST_CLUSTERS} tables ([[clusters]])")
    clusters = tuple(_read_cluster(entry, i, where, cores, provenance) for i, entry in enumerate(entries))
    if "dram" not in table:
        raise UserError(f"{where}: dram is missing")
    gpu, power = table.get("gpu"), table.get("power")
    given = {
        "clusters": clusters,
        "gpu": None if gpu is None else read_table(Gpu, gpu, "gpu", where, provenance),
        "dram": read_table(Dram, table["dram"], "dram", where, provenance),
        "power": None if power is None else read_table(Power, power, "power", where, provenance),
        "factors": read_numbers(table.get("factors", {}), "factors", where, provenance, 1e-6, 1e9),
        "provenance": provenance,
    }
    board = read_table(Board, dict(table), "", where, provenance, given)
    problem = contradiction(board)
    if problem is not None:
        raise UserError(f"{where}: {problem}")
    return board


def _read_cluster(
    entry: object, index: int, where: str, cores: Mapping[str, Any], provenance: dict[str, Provenance]
) -> Cluster:
    table = expect_table(entry, f"clusters[{index}]", where)
    name = table.get("name")
    path = f"clusters.{name}" if isinstance(name, str) and name.isidentifier() else f"clusters[{index}]"
    if path.endswith("]") and name is not None:
        raise UserError(f"{where}: {path}.name must be letters, digits and underscores, it is used in paths")
    core = table.get("core")
    if isinstance(core, str):
        if core not in cores:
            raise UserError(f"{where}: {path}.core {core!r} is not known; known cores: {', '.join(sorted(cores))}")
        core = cores[core]
    if core is None:
        raise UserError(f"{where}: {path}.core is missing; name a core or describe one in a table")
    given = {"core": read_table(Core, core, f"{path}.core", where, provenance)}
    return read_table(Cluster, table, path, where, provenance, given)
