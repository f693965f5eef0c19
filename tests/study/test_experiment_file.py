"""An experiment file is checked once, and the message names the key, the value and the rule."""

import tomllib
from pathlib import Path

import pytest

from acuity.study.config.caveats import BY_FILE, caveats, with_found_format
from acuity.study.config.changes import changes_of_meaning
from acuity.study.config.loading import load, parse, to_table
from acuity.study.config.paths import move_paths
from acuity.study.config.template import write_template
from acuity.study.errors import UsageError

GOOD = """
name = "nih"
labels = ["Effusion", "Nodule"]
[data]
index = "Data_Entry.csv"
images = "images"
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = 12
[training]
epochs = 5
"""


def read(text: str):
    return parse(tomllib.loads(text), source="nih.toml")


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("[32, 64]", "[30, 64]", r"search.resolutions has 30, must be a multiple of 8 between 16 and 2048"),
        ("[32, 64]", "[64, 64]", r"search.resolutions has 64 more than once"),
        ("trials = 12", 'trials = "12"', r'search.trials has "12", must be a valid integer'),
        ("trials = 12", "trails = 12", r"unknown key search.trails; did you mean trials\?"),
        ("trials = 12", "trials = 5", r"search.trials is 5, must be at least 6: 2 resolutions x"),
        (
            "trials = 12",
            "trials = 12\nlearn_from = ['my pilot']",
            r'search.learn_from has "my pilot", must be a text of letters, digits',
        ),
        (
            "trials = 12",
            "trials = 12\nbatch = 'larg'",
            r'search.batch has "larg", must be "search", "largest" or a number',
        ),
        ("trials = 12", "trials = 12\nlearning_rate = [0.1, 0.01]", r"the first must be below the second"),
        ("trials = 12", "trials = 12\nlearning_rate = [0.1]", r"search.learning_rate has too few values"),
        ("epochs = 5", "", r"training.epochs is missing"),
        ("epochs = 5", "epochs = 5.5", r"training.epochs has 5.5, must be a valid integer"),
        (
            "epochs = 5",
            'epochs = 5\nprecision = "fp8"',
            r"training.precision has \"fp8\", must be 'fp32', 'tf32' or 'bf16'",
        ),
        ("epochs = 5", 'epochs = 5\npretrained = true\nweights = "w"', r"both given"),
        (
            "epochs = 5",
            "epochs = 5\nweight_decay = inf",
            r"weight_decay has Infinity, must be a finite",
        ),
        (
            "epochs = 5",
            "epochs = 5\n[workers]\nstorage_patience_min = inf",
            r"patience_min has Infinity",
        ),
        ("trials = 12", "trials = 12\nseed = -1", r"search.seed has -1, must be greater than or equal to 0"),
        (
            "trials = 12",
            "trials = 12\nbatch = 2048",
            r"search.batch is 2048, must be at most 1024: max_batch_size",
        ),
        (
            "trials = 12",
            "trials = 12\nbatch = 100\nmax_batch_size = 100",
            r"search.batch is 100, must be at most 96: max_batch_size = 100, down to a multiple of 8",
        ),
        (
            "epochs = 5",
            "epochs = 5\n[workers]\ngrace_s = 20",
            r"workers.grace_s is 20, must be at least 60, twice heartbeat_s",
        ),
        ("[search]", "[serach]", r"unknown key serach; did you mean search\?"),
        ('"nih"', '"n/h"', r'name has "n/h", must be a text of letters'),
        ('["Effusion", "Nodule"]', "[]", r"labels has \[\], must be a list of at least 1"),
        ('["Effusion", "Nodule"]', '"Effusion"', r'labels has "Effusion", must be a list'),
        (
            '["Effusion", "Nodule"]',
            '["Eff\\nusion"]',
            r"labels has .*, must be a text of 1 to 128 characters in",
        ),
        (
            "trials = 12",
            "trials = 2147483648",
            r"trials has 2147483648, must be less than or equal to 2147483647",
        ),
        ("trials = 12", "trials = 12\nseed = 4294967296", r"search.seed has 4294967296, must be less than 4294967296"),
        (
            "epochs = 5",
            "epochs = 5\n[workers]\nheartbeat_s = 100000000000",
            r"workers.heartbeat_s has 100000000000, must be a whole number of seconds between 1 and 604800, a week",
        ),
        ("epochs = 5", "learning_rate = [0.1, 0.2]\nepochs = 5", r"training.learning_rate; it belongs in \[search\]"),
        ("[data]", "epochs = 5\n[data]", r"unknown key epochs; it belongs in \[training\]"),
        ("[data]", '[data]\nlabels = ["Mass"]', r"unknown key data.labels; it belongs at the top of the file, before"),
        ("[data]", '[data]\ncolumns = {fil = "x"}', r"unknown key data.columns.fil; did you mean file\?"),
        (
            "[data]",
            "[data]\ncolumns = {labels = 3}",
            r"columns.labels has 3, must be a column, a list of columns,",
        ),
        ("[data]", "[data]\ncolumns = {values = {YES = 2}}", r"data.columns.values.YES has 2, must be 1, 0 or -1"),
        ("[data]", '[data]\ncolumns = {reader = "r"}', r"columns.reader is given without data.columns.rows_per_image"),
        ("epochs = 5", "epochs = 5\n[confirm]\nseeds = 2", r"confirm.seeds has 2, must be greater than or equal to 3"),
        (
            "epochs = 5",
            "epochs = 5\n[confirm]\nresolutions = [48]",
            r"confirm.resolutions has 48, must be among search",
        ),
        ("epochs = 5", "epochs = 5\n[confirm]\nmargins = 0.1", r"unknown key confirm.margins; did you mean margin\?"),
        ("epochs = 5", "epochs = 5\nnetwork_input = 30", r"network_input has 30, must be a multiple of 8 between 16"),
        ("epochs = 5", "epochs = 5\n[cluster]\nextra = {nice = 1.5}", r"cluster.extra.nice has 1.5, must be a text, a"),
        ('["test_resnet"]', '["a", "b", "c", "d", "e", "f", "g"]', r"has 7 networks, must be at most"),
    ],
)
def test_each_message_names_key_value_and_rule(good: str, bad: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(GOOD.replace(good, bad))
    assert str(caught.value).startswith("nih.toml: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_file_without_toml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file .*acuity new"):
        load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = [")
    with pytest.raises(UsageError, match=r"broken.toml: is not valid TOML"):
        load(broken)
    broken.write_bytes(b"name = '\xff\xfe'")
    with pytest.raises(UsageError, match="UTF-8"):
        load(broken)


def test_the_table_for_the_database_parses_to_the_same_experiment() -> None:
    experiment = read(GOOD)
    assert parse(to_table(experiment), source="stored") == experiment


def test_the_template_is_a_valid_experiment_and_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "nih.toml"
    write_template(file)
    experiment = load(file)
    assert experiment.data.images == tmp_path / "images"
    with pytest.raises(UsageError, match="exists and is not overwritten"):
        write_template(file)


def test_every_commented_default_of_the_template_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "nih.toml"
    write_template(file)
    lines = file.read_text().splitlines()
    uncommented = [line.removeprefix("# ") if " = " in line else line for line in lines if "weights =" not in line]
    file.write_text("\n".join(uncommented))
    assert load(file).workers.max_retries == 5


def test_only_changes_of_a_trials_meaning_are_found() -> None:
    old = read(GOOD)
    assert changes_of_meaning(old, read(GOOD.replace("trials = 12", "trials = 99"))) == []
    assert changes_of_meaning(old, read(GOOD + "[workers]\nmax_retries = 1")) == []
    assert changes_of_meaning(old, read(GOOD + "[confirm]\nmargin = 0.05")) == []
    assert changes_of_meaning(old, read(GOOD.replace('"images"', '"elsewhere"'))) == []
    assert changes_of_meaning(old, read(GOOD.replace('"Nodule"]', '"Nodule", "Mass"]'))) == []
    assert changes_of_meaning(old, read(GOOD.replace("epochs = 5", "epochs = 6"))) == ["training.epochs: 5 -> 6"]
    assert changes_of_meaning(old, read(GOOD.replace(', "Nodule"]', "]"))) == [
        'labels: ["Effusion", "Nodule"] -> ["Effusion"]'
    ]


def test_a_key_that_starts_like_a_free_key_is_not_free() -> None:
    by_image = read(GOOD.replace('images = "images"', 'images = "images"\nsplit_by = "image"'))
    assert changes_of_meaning(read(GOOD), by_image) == ['data.split_by: "patient" -> "image"']


def test_a_file_of_weights_may_move_but_not_be_added_or_removed() -> None:
    random, here, there = (read(GOOD + more) for more in ("", 'weights = "here/w.pt"', 'weights = "there/w.pt"'))
    assert changes_of_meaning(here, there) == []
    assert changes_of_meaning(random, here) == ['training.weights: null -> "here/w.pt"']
    assert changes_of_meaning(here, random) == ['training.weights: "here/w.pt" -> null']


def test_another_host_finds_the_paths_in_the_folder_of_the_index(tmp_path: Path) -> None:
    file = tmp_path / "nih.toml"
    file.write_text(GOOD.replace('images = "images"', 'images = "images"\ncache = "/fast/cache"'))
    moved = move_paths(load(file), Path("/mnt/nih"))
    assert moved.data.index == Path("/mnt/nih/Data_Entry.csv")
    assert moved.data.images == Path("/mnt/nih/images")
    assert moved.data.cache == Path("/fast/cache")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "nih.toml").write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load(tmp_path / "nih.toml").name == "nih"


def test_a_nul_character_in_a_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nih.toml").write_text(GOOD.replace('"images"', '"im\\u0000ages"'))
    with pytest.raises(UsageError, match="NUL character"):
        load(tmp_path / "nih.toml")


def test_all_mistakes_of_a_file_are_reported_together() -> None:
    text = GOOD.replace("trials = 12", "trials = 5\narchitectures_ = 1\nlearning_rate = [0.1, 0.01]")
    text = text.replace("epochs = 5", 'epocs = 5\nprecision = "fp8"\nlearn_from = ["x"]').replace(
        "[32, 64]", "[32, 32]"
    )
    with pytest.raises(UsageError) as caught:
        read(text)
    assert str(caught.value) == (
        "nih.toml: has 4 mistakes: (1) unknown key search.architectures_; did you mean architectures?; "
        "(2) unknown key training.epocs; did you mean epochs?; "
        "(3) unknown key training.learn_from; it belongs in [search]; "
        "(4) training.precision has \"fp8\", must be 'fp32', 'tf32' or 'bf16'"
    )
    with pytest.raises(UsageError) as caught:
        read(text.replace("architectures_ = 1\n", "").replace("epocs", "epochs").replace("precision", "# "))
    assert "unknown key training.learn_from; it belongs in [search]" in str(caught.value)
    rules = GOOD.replace("trials = 12", "trials = 1\nlearning_rate = [0.1, 0.01]").replace("[32, 64]", "[32, 32]")
    with pytest.raises(UsageError, match=r"has 3 mistakes: \(1\) search.resolutions has 32 more than once") as caught:
        read(rules)
    assert "(2) search.trials is 1, must be at least 6" in str(caught.value)
    assert "(3) search.learning_rate is [0.1, 0.01]" in str(caught.value)
    across = GOOD.replace("trials = 12", 'trials = 12\nlearn_from = ["nih"]') + "[confirm]\nresolutions = [48, 80]"
    with pytest.raises(UsageError, match=r"3 mistakes: \(1\) confirm.resolutions has 48, .* \(3\) search.learn_from"):
        read(across)


def test_deep_brackets_and_long_numbers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.toml"
    for value in ("[" * 5000 + "]" * 5000, "{a=" * 3000 + "1" + "}" * 3000):
        file.write_text(f"name = {value}")
        with pytest.raises(UsageError, match="brackets nested too deeply"):
            load(file)
    file.write_text("name = " + "1" * 5000)
    with pytest.raises(UsageError, match="is not valid TOML"):
        load(file)


def test_columns_round_trip_through_the_database_and_may_change() -> None:
    columns = '[data]\ncolumns = {file = "{id}.png", patient = "file", labels = {"A/B" = "ab"}, values = {Y = 1}}'
    experiment = read(GOOD.replace("[data]", columns))
    assert parse(to_table(experiment), source="stored") == experiment
    assert changes_of_meaning(experiment, read(GOOD)) == []
    assert caveats(experiment) == (BY_FILE,)
    assert caveats(read(GOOD)) == ()
    assert caveats(with_found_format(read(GOOD), "vindr")) == (BY_FILE,)
    assert caveats(with_found_format(read(GOOD.replace("[data]", '[data]\ncolumns = {patient = "p"}')), "vindr")) == ()
