from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from targets.boards import LARGEST_FILE_BYTES, board_names, load_board
from targets.errors import UserError
from targets.provenance import KINDS
from targets.read_board import board_from_json

NAMES = [name for name in board_names() if not name.startswith("host")]  # those are described, not read


def small_board() -> dict[str, Any]:
    """A valid board with round numbers, in the form of ``to_json``."""

    def fact(value: object) -> dict[str, object]:
        return {"value": value, "kind": "assumed", "source": "made up for a test"}

    return {
        "format": 1,
        "name": "small",
        "description": "for tests",
        "clusters": [
            {
                "name": "big",
                "core": {
                    "name": "cortex-a76",
                    "isa": "aarch64",
                    "llvm_cpu": "cortex-a76",
                    "llvm_features": ["+neon"],
                    "vector_bits": fact(128),
                    "vector_registers": fact(32),
                    "fp32_flops_per_cycle": fact(16),
                    "int8_ops_per_cycle": fact(64),
                    "l1d_bytes": fact(65536),
                    "has_dotprod": fact(True),
                    "has_fp16": fact(True),
                    "has_i8mm": fact(False),
                    "in_order": fact(True),
                },
                "count": fact(2),
                "frequency_ghz": fact(2),
                "cpu_ids": fact([0, 1]),
                "l2_bytes": fact(524288),
                "l3_bytes": fact(0),
                "bandwidth_one_thread_gb_per_s": fact(6),
                "bandwidth_all_threads_gb_per_s": fact(8),
                "launch_overhead_s": fact(5e-6),
            }
        ],
        "gpu": {
            "model": "Mali-G610",
            "shader_cores": fact(4),
            "frequency_ghz": fact(1.0),
            "fp32_gflops": fact(470),
            "fp16_gflops": fact(910),
            "bandwidth_gb_per_s": fact(9),
            "launch_overhead_s": fact(6e-5),
            "unified_memory": fact(True),
            "opencl_version": fact("3.0"),
            "max_work_group_size": fact(1024),
            "has_fp16": fact(True),
        },
        "dram": {
            "capacity_bytes": fact(1 << 32),
            "peak_bandwidth_gb_per_s": fact(10),
            "reserved_bytes": fact(1 << 30),
        },
    }


def refused(board: object) -> str:
    """The one-line message with which a board is refused."""
    with pytest.raises(UserError) as caught:
        board_from_json(board, "small.json")
    message = str(caught.value)
    assert message.startswith("small.json: ")
    assert "\n" not in message
    return message


def changed(path: str, value: object) -> dict[str, Any]:
    """The small board with one key set (``clusters.0.count.value``), or removed when the value is None."""
    board = small_board()
    *parents, last = path.split(".")
    at: Any = board
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if value is None:
        del at[last]
    elif isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    return board


def test_the_names_of_the_issue_are_there() -> None:
    assert {"host", "imx95", "rk3588", "rk3566", "rpi5"} <= set(board_names())
    assert {"rpi4", "rk3568", "imx93", "imx8mp"} <= set(board_names())


@pytest.mark.parametrize("name", ["rpi4", "rk3568", "imx93", "imx8mp"])
def test_what_nobody_published_is_assumed_with_a_range(name: str) -> None:
    """Bandwidths decide a prediction: each is measured, or assumed between two ends that its source explains."""
    board = load_board(name)
    (cluster,) = board.clusters
    for which in ("one_thread", "all_threads"):
        path = f"clusters.{cluster.name}.bandwidth_{which}_gb_per_s"
        origin = board.provenance[path]
        assert origin.range is not None
        assert origin.range[0] < board.number(path) < origin.range[1] <= board.dram.peak_bandwidth_gb_per_s
    assert (board.gpu is None) == (name != "rk3568")  # the i.MX 8M Plus has a GPU that is no Mali


@pytest.mark.parametrize("name", NAMES)
def test_a_board_survives_json(name: str) -> None:
    board = load_board(name)
    again = board_from_json(json.loads(json.dumps(board.to_json())))
    assert again == board
    assert again.provenance == board.provenance
    assert json.dumps(again.to_json()) == json.dumps(board.to_json())


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_kind_and_a_source(name: str) -> None:
    board = load_board(name)

    def numbers(item: dict[str, Any], path: str) -> list[str]:
        return [f"{path}.{key}" for key, value in item.items() if isinstance(value, dict) and "value" in value]

    data = board.to_json()
    expected = numbers(data["dram"], "dram") + numbers(data["gpu"] or {}, "gpu")
    expected += numbers(data.get("power", {}), "power")
    for cluster in data["clusters"]:
        path = f"clusters.{cluster['name']}"
        expected += numbers(cluster, path) + numbers(cluster["core"], f"{path}.core")
    assert sorted(board.provenance) == sorted(expected)
    for path, origin in board.provenance.items():
        assert origin.kind in KINDS
        assert len(origin.source) > 8, path


def test_peak_rates_of_the_rk3588() -> None:
    a76 = load_board("rk3588").cluster("a76")
    assert a76.fp32_gflops == pytest.approx(4 * 2.3 * 16)  # cores x GHz x (2 FMLA x 4 lanes x 2)
    assert a76.int8_gops == pytest.approx(4 * 2.3 * 64)  # cores x GHz x (2 SDOT x 16 products x 2)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"'rk3599' is not known; known boards: host, host-split, imx8mp, imx93, imx95, .*rk3588.*\.toml",
    ):
        load_board("rk3599")


def test_an_unknown_cluster_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="no cluster 'a78'; it has a76, a55"):
        load_board("rk3588").cluster("a78")


def test_the_small_board_is_accepted() -> None:
    board = board_from_json(small_board())
    assert board.isa == "aarch64"
    assert board.clusters[0].frequency_ghz == 2.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gpus", {}, "unknown key 'gpus' in the file; did you mean 'gpu'?"),
        ("clusters.0.frequency_mhz", {}, "unknown key 'frequency_mhz' in clusters.big; did you mean 'frequency_ghz'?"),
        ("clusters.0.frequency_ghz.unit", "MHz", "unknown key 'unit' in clusters.big.frequency_ghz"),
        ("clusters.0.count", None, "clusters.big.count is missing"),
        ("clusters.0.core", None, "clusters.big.core is missing"),
        ("dram", None, "dram is missing"),
        ("name", None, "name is missing"),
        ("clusters", [], "clusters must be a list of 1 to 64 tables"),
        ("clusters.0", 3, "clusters[0] must be a table, not a whole number"),
        ("clusters.0.count.value", "two", "clusters.big.count must be a whole number, not 'two'"),
        ("clusters.0.count.value", 2.0, "clusters.big.count must be a whole number, not 2.0"),
        ("clusters.0.count.value", True, "clusters.big.count must be a whole number, not True"),
        ("gpu.unified_memory.value", 1, "gpu.unified_memory must be true or false, not 1"),
        ("clusters.0.frequency_ghz.value", 2400, "is 2400.0; it must lie between 0.05 and 10 in GHz"),
        ("clusters.0.frequency_ghz.value", -2, "clusters.big.frequency_ghz is -2.0; it must lie between"),
        ("dram.peak_bandwidth_gb_per_s.value", float("nan"), "dram.peak_bandwidth_gb_per_s is nan"),
        ("dram.reserved_bytes.value", -1, "dram.reserved_bytes is -1"),
        ("dram.capacity_bytes", 4294967296, "dram.capacity_bytes must be { value = ..., kind = ..., source = ... }"),
        ("dram.capacity_bytes.kind", "guess", "kind 'guess' is not one of datasheet, measured, assumed"),
        ("dram.capacity_bytes.kind", ["assumed"], "kind ['assumed'] is not one of"),
        ("dram.capacity_bytes.source", " ", "source must be one line of text"),
        ("dram.capacity_bytes.source", None, "dram.capacity_bytes lacks 'source'"),
        ("clusters.0.core", "cortex-z1", "clusters.big.core 'cortex-z1' is not known"),
        ("clusters.0.name", "big one", "clusters[0].name must be letters, digits and underscores"),
        ("clusters.0.core.isa", "riscv64", "clusters.big.core.isa is 'riscv64'; it must be one of aarch64, x86-64"),
        ("clusters.0.core.llvm_features", "+neon", "clusters.big.core.llvm_features must be a list"),
        ("gpu.opencl_version.value", "4.0", "gpu.opencl_version is '4.0'; it must be one of"),
        ("clusters.0.cpu_ids.value", [0], "clusters.big.count is 2, but cpu_ids lists 1"),
        ("clusters.0.cpu_ids.value", [1, 1], "a CPU number stands in cpu_ids twice"),
        ("clusters.0.bandwidth_all_threads_gb_per_s.value", 11, "11 is above dram.peak_bandwidth_gb_per_s 10"),
        ("clusters.0.bandwidth_one_thread_gb_per_s.value", 9, "9 is above bandwidth_all_threads_gb_per_s 8"),
        ("clusters.0.bandwidth_one_thread_gb_per_s.value", 11, "one_thread_gb_per_s 11 is above dram.peak_bandwidth"),
        ("gpu.bandwidth_gb_per_s.value", 12, "gpu.bandwidth_gb_per_s 12 is above dram.peak_bandwidth_gb_per_s 10"),
        ("gpu.has_fp16.value", False, "gpu.has_fp16 and gpu.fp16_gflops 910 contradict each other"),
        ("dram.reserved_bytes.value", 1 << 32, "dram.reserved_bytes is not below dram.capacity_bytes"),
        ("dram.peak_bandwidth_gb_per_s.range", [11, 12], "range 11 to 12 must be above 0 and hold the value 10"),
        ("dram.peak_bandwidth_gb_per_s.range", [9], "range must be two numbers"),
        ("dram.peak_bandwidth_gb_per_s.range", [9, True], "range must be two numbers"),
        ("dram.peak_bandwidth_gb_per_s.range", [0, 12], "range 0 to 12 must be above 0"),
        ("dram.peak_bandwidth_gb_per_s.range", [9, float("inf")], "range 9 to inf must be above 0"),
        ("gpu.opencl_version.range", [2, 3], "range must be two numbers"),
        ("clusters.0.cpu_ids.range", [0, 1], "range must be two numbers"),
        ("format", 2, "not a board of format 1"),
    ],
)
def test_what_is_wrong_and_where(path: str, value: object, message: str) -> None:
    assert message in refused(changed(path, value))


def test_a_range_is_kept() -> None:
    board = board_from_json(changed("dram.peak_bandwidth_gb_per_s.range", [9, 12]))
    assert board.provenance["dram.peak_bandwidth_gb_per_s"].range == (9.0, 12.0)
    again = board_from_json(json.loads(json.dumps(board.to_json())))
    assert again.provenance == board.provenance
    assert "range" not in board_from_json(small_board()).to_json()["dram"]["peak_bandwidth_gb_per_s"]


RATES = [(one, every) for one in ("read", "copy", "decoder") for every in ("read", "copy", "decoder")]


@pytest.mark.parametrize(("one", "every"), RATES)
def test_bandwidths_of_different_kinds_are_not_held_against_each_other(one: str, every: str) -> None:
    """One thread reads 9, all threads decode with 8: no contradiction. Two numbers of one kind are one."""
    board = changed("clusters.0.bandwidth_one_thread_gb_per_s.value", 9)
    board["clusters"][0].update(bandwidth_one_thread_rate=one, bandwidth_all_threads_rate=every)
    if one == every:
        assert "one_thread_gb_per_s 9 is above bandwidth_all_threads_gb_per_s 8" in refused(board)
    else:
        assert board_from_json(board).clusters[0].bandwidth_one_thread_gb_per_s == 9.0


@pytest.mark.parametrize(
    ("by_threads", "message"),
    [
        ([6, 8], None),
        ([5, 8], "by_threads_gb_per_s begins with 5, but bandwidth_one_thread_gb_per_s is 6"),
        ([6, 7], "by_threads_gb_per_s ends with 7, but bandwidth_all_threads_gb_per_s is 8"),
        ([6, 7, 8], "by_threads_gb_per_s has 3 numbers for 2 cores"),
        ([6, 11], "by_threads_gb_per_s 11 is above dram.peak_bandwidth_gb_per_s 10"),
    ],
)
def test_a_list_of_bandwidths_has_the_two_numbers_at_its_ends(by_threads: list[float], message: str | None) -> None:
    fact = {"value": by_threads, "kind": "assumed", "source": "made up for a test"}
    board = changed("clusters.0.bandwidth_by_threads_gb_per_s", fact)
    if message is None:
        board_from_json(board)
        return
    assert message in refused(board)
    if "but" in message:  # a list of another kind says other things
        board["clusters"][0]["bandwidth_by_threads_rate"] = "copy"
        board_from_json(board)


def test_two_clusters_must_differ_in_name_and_agree_in_instruction_set() -> None:
    board = small_board()
    board["clusters"].append(copy.deepcopy(board["clusters"][0]))
    assert "two clusters have the same name" in refused(board)
    board["clusters"][1]["name"] = "little"
    board["clusters"][1]["cpu_ids"]["value"] = [2, 3]
    board_from_json(board)
    board["clusters"][1]["core"]["isa"] = "x86-64"
    assert "different isa" in refused(board)


@pytest.mark.parametrize("data", [None, [], "board", 3])
def test_json_that_is_no_table(data: object) -> None:
    assert "must be a table" in refused(data)


def test_a_board_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = (Path(load_board.__code__.co_filename).parent / "rpi5.toml").read_text()
    file.write_text(text.replace('name = "rpi5"', 'name = "mine"'))
    assert load_board(str(file)).name == "mine"
    assert load_board(file) == load_board(str(file))
    file.write_text(text.replace('core = "cortex-a76"', 'core = "cortex-a77"'))
    with pytest.raises(
        UserError, match=r"mine\.toml: clusters\.a76\.core 'cortex-a77' is not known; known cores: cortex-a510"
    ):
        load_board(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "not valid TOML"),
        (b"name = '\xff'", "not UTF-8"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "mine.toml: "),
        (b"#" * (LARGEST_FILE_BYTES + 1), "larger than"),
        (b"x = " + b"9" * 5000, "not valid TOML"),  # Python reads no number of so many digits
        (b"x = 0x" + b"f" * 5000, "unknown key 'x'"),  # but in base 16
        (b"name = 0x" + b"f" * 5000, "clusters must be a list"),
    ],
)
def test_a_file_that_is_no_board(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_board(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("digits", [b"1" + b"0" * 400, b"-1" + b"0" * 400, b"0x" + b"f" * 5000])
@pytest.mark.parametrize("name", ["frequency_ghz", "count", "cpu_ids", "l2_bytes"])
def test_a_whole_number_beyond_all_bounds(tmp_path: Path, name: str, digits: bytes) -> None:
    """It is no float64, and one of 5000 hexadecimal digits is no text either."""
    text = (Path(load_board.__code__.co_filename).parent / "rpi5.toml").read_bytes()
    line = next(line for line in text.splitlines() if line.startswith(name.encode()))
    own = b'%s = { value = %s, kind = "assumed", source = "a test" }'
    file = tmp_path / "mine.toml"
    value = b"[" + digits + b"]" if name == "cpu_ids" else digits
    file.write_bytes(text.replace(line, own % (name.encode(), value)))
    with pytest.raises(UserError, match=rf"clusters\.a76\.{name} is .* must lie between") as caught:
        load_board(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(str(file))) < 160


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.toml: cannot be read: No such file"):
        load_board(tmp_path / "mine.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_board(tmp_path / "folder.toml")


def test_factors_of_a_calibration_are_facts_too() -> None:
    table = load_board("rpi5").to_json()
    fact = {"value": 0.8, "kind": "measured", "source": "a test"}
    board = board_from_json({**table, "factors": {"bandwidth": fact}})
    assert board.factors == {"bandwidth": 0.8}
    assert board_from_json(board.to_json()) == board
    assert "factors" not in table
    for wrong in ({"bandwidth": 0.8}, {"bandwidth": {**fact, "value": 0}}, {"band width": fact}, [], {"x": {}}):
        with pytest.raises(UserError, match="factors"):
            board_from_json({**table, "factors": wrong})
