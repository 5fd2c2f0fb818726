import doctest
import subprocess
import sys

import pytest

from ablate import plan as plan_module
from ablate import reader, strict_yaml
from ablate.nouns import Condition, Criterion, Options, StudyError
from ablate.reader import load_study, parse_sets, resolved
from ablate.study import plan
from tests.ablate.toys import TOY

CORE = "tests.ablate.toy_core"


def arms(study):
    return [arm.label for arm in plan_module.arms_of(study)]


def refusal(act, *args):
    with pytest.raises(StudyError) as caught:
        act(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("module", [reader, plan_module])
def test_worked_examples(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_a_base_that_names_one_zipped_factor_means_its_step(write):
    text = TOY.replace("    wild: {noise: 2}\n", "").replace(
        "seeds:", "zip: [[rate, noise]]\nseeds:"
    )
    text = text.replace("one_at_a_time", "[{one_at_a_time: {base: {rate: fast}}}, leave_one_out]")
    study = load_study(
        write(text.replace("leave_one_out", "{leave_one_out: {base: {rate: fast}}}"))
    )
    assert study.base_levels == {"rate": "fast", "noise": "high"}
    assert arms(study) == ["base", "rate+noise=slow+low"]


def test_a_study_is_read(write):
    study = load_study(write(TOY))
    assert study.name == "mine"
    assert study.question == "Does it run?"
    assert [factor.names for factor in study.factors] == [("slow", "fast"), ("low", "high", "wild")]
    assert study.factor("rate").level("fast").settings == {"lr": 1.0}
    assert study.base_levels == {"rate": "slow", "noise": "low"}
    assert study.criteria == (Criterion("loss", (Condition("final/loss", 0.3),)),)
    assert (study.seeds, study.attempts, study.timeout) == ((0, 1), 2, None)
    jobs = plan(study).jobs
    assert [(job.arm, job.seed) for job in jobs[:4]] == [
        ("base", 0),
        ("base", 1),
        ("rate=fast", 0),
        ("rate=fast", 1),
    ]
    assert jobs[2].settings["lr"] == 1.0
    assert jobs[2].settings["steps"] == 30
    assert jobs[3].settings["seed"] == 1
    assert jobs[3].levels == {"rate": "fast", "noise": "low"}


def test_yaml_is_read_without_surprises(write):
    text = "{a: on, off: no, 3e-4: 3e-4, b: 1., c: 010, d: ~, e: true, f: '1', g: 1:30, h: -.inf}"
    assert strict_yaml.parse(text).plain() == {
        "a": "on",
        "off": "no",
        "3e-4": 0.0003,
        "b": 1.0,
        "c": 10,
        "d": None,
        "e": True,
        "f": "1",
        "g": "1:30",
        "h": float("-inf"),
    }
    value = strict_yaml.parse(text).plain()
    assert strict_yaml.parse(strict_yaml.dump(value)).plain() == value


def test_level_names_are_the_text_that_stands_there(write):
    text = TOY.replace("slow:", "off:").replace("fast:", "1e-4:")
    study = load_study(write(text + "exclude: [{rate: 1e-4, noise: [low, wild]}]"))
    assert study.factors[0].names == ("off", "1e-4")
    assert study.exclude == ({"rate": ("1e-4",), "noise": ("low", "wild")},)


REFUSED = {
    "a factor as a list": (
        "    slow: {lr: 0.1}\n    fast: {lr: 1.0}",
        "    [1e-3, 1e-4]",
        "factors.rate: given a list, must be levels with what each sets: rate: {1e-3: {rate: 1e-3}",
    ),
    "levels that set nothing": (
        "    slow: {lr: 0.1}\n    fast: {lr: 1.0}",
        "    {1e-3, 1e-4}",
        "factors.rate: no level sets anything; write what each sets: 1e-3: {PATH: VALUE}",
    ),
    "a factor without a name": ("  noise:\n", '  "":\n', "a factor needs a name"),
    "an empty question": ("Does it run?", '""', "question: empty; say what"),
    "a list without arms": ("one_at_a_time", "list", "design: list needs its arms"),
    "a threshold that is no number": (
        "seeds:",
        "criteria: {loss: .nan}\nseeds:",
        "criteria.loss: given nan, must be a finite number",
    ),
    "an upper bound of a share": (
        "seeds:",
        "criteria: {hits: {test/mf1: 0.9}}\nseeds:",
        "more is better of test/mf1, and a number alone is an upper bound; write {above: 0.9}",
    ),
    "two bounds": (
        "seeds:",
        "criteria: {a: {x: {above: 1, below: 2}}}\nseeds:",
        "criteria.a.x: given 2 bounds, must be one of below, above",
    ),
    "a setting that is no number": ("{lr: 1.0}", "{lr: .nan}", "lr: given nan, must be a finite"),
    "a misspelt key": ("design:", "desing:", "mine.yaml:13: desing: unknown key; did you mean"),
    "a key twice": ("seeds:", "question: again\nseeds:", "mine.yaml:14: question: given twice"),
    "a level twice": ("high:", "low:", "mine.yaml:11: factors.noise.low: given twice"),
    "levels alike": (
        "low: {noise: 0.2}",
        "a long name 1: {noise: 0.2}\n    a long name 2: {noise: 0.3}",
        "level 'a long name 2' must differ from 'a long name 1' in its first 10 characters",
    ),
    "one level": ("    fast: {lr: 1.0}\n", "", "factors.rate: given 1 level(s), must be two or"),
    "an unknown setting": ("lr: 1.0", "lrr: 1", "factors.rate.fast: unknown setting 'lrr'; did"),
    "an unknown base setting": ("steps:", "step:", "base: unknown setting 'step'; did you mean"),
    "a wrong type": ("noise: 2", "noise: [2]", "factors.noise.wild: noise: given [2], must be"),
    "nested settings": ("lr: 1.0", "a: {b: 1}", "factors.rate.fast.a: given a mapping, must be a"),
    "the seed as a setting": ("steps: 30", "seed: 3", "base.seed: seeds are the study's own key"),
    "an unknown design": ("one_at_a_time", "latin", "mine.yaml:13: design: unknown design 'latin'"),
    "no design": ("one_at_a_time", "[]", "design: empty; allowed: factorial"),
    "a design's option": (
        "one_at_a_time",
        "{one_at_a_time: {bas: {rate: fast}}}",
        "design.one_at_a_time.bas: unknown key; did you mean 'base'?",
    ),
    "a design's level": (
        "one_at_a_time",
        "{one_at_a_time: {base: {rate: quick}}}",
        "design.one_at_a_time.base.rate: unknown level 'quick'; allowed: slow, fast",
    ),
    "two bases": (
        "one_at_a_time",
        "[one_at_a_time, {factorial: {factors: [rate], base: {noise: high}}}]",
        "one_at_a_time has the base noise=low, factorial noise=high; a study has one base: name",
    ),
    "two bests": (
        "one_at_a_time",
        "[{leave_one_out: {best: {noise: high}}}, leave_one_out]",
        "leave_one_out has the best noise=high, leave_one_out noise=wild; a study has one best",
    ),
    "two designs in one": (
        "one_at_a_time",
        "{factorial: , one_at_a_time: }",
        "design: given 2 names, must be one design a list item",
    ),
    "three levels in a fraction": (
        "one_at_a_time",
        "{fractional: {resolution: 3}}",
        "fractional takes two levels a factor, noise has 3",
    ),
    "seeds of words": ("[0, 1]", "[a]", "seeds[0]: given 'a', must be a whole number"),
    "a seed twice": ("[0, 1]", "[1, 1]", "seeds: given [1, 1], must be one or more different"),
    "negative seeds": ("[0, 1]", "[-1]", "seeds: given [-1], must be"),
    "one seed for all": ("[0, 1]", "3", "seeds: given '3', must be a list ([a, b])"),
    "an unknown core": (CORE, "no.such.core", "core: given 'no.such.core', cannot be imported"),
    "an excluded factor": (
        "seeds:",
        "exclude: [{speed: fast}]\nseeds:",
        "exclude[0].speed: unknown factor 'speed'; allowed: rate, noise",
    ),
    "all excluded": ("seeds:", "only: [{rate: fast}]\nexclude: [{noise: low}]\nseeds:", "no arm"),
    "an empty match": ("seeds:", "exclude: [{}]\nseeds:", "exclude[0]: empty"),
    "a zip of unequal factors": ("seeds:", "zip: [[rate, noise]]\nseeds:", "zip: levels go in ste"),
    "a zip of one": ("seeds:", "zip: [[rate]]\nseeds:", "zip: must be lists of two or more"),
    "a criterion's number": (
        "seeds:",
        "criteria: {loss: low}\nseeds:",
        "criteria.loss: given 'low', must be a number",
    ),
    "an unknown criterion": (
        "seeds:",
        "criteria: {los: 1}\nseeds:",
        "unknown criterion 'los'; did",
    ),
    "an empty criterion": ("seeds:", "criteria: {loss: {}}\nseeds:", "criteria.loss: empty"),
    "a negative timeout": ("seeds:", "timeout: -1\nseeds:", "timeout: given -1.0, must be a posit"),
    "half an attempt": (
        "seeds:",
        "attempts: 1.5\nseeds:",
        "attempts: given '1.5', must be a posit",
    ),
    "a name that is no folder": ("seeds:", "name: a/b\nseeds:", "name: given 'a/b', must be lett"),
    "a name that is taken": ("seeds:", "name: jobs\nseeds:", "name: given 'jobs', must be letters"),
    "no question": ("question: Does it run?", "", "question: is missing"),
    "a merge key": ("base: {", "base: {<<: {lr: 1}, ", "base.<<: merge keys are not read"),
    "a tag": ("steps: 30", "steps: !!python/name:os 1", "base.steps: given '1' with the tag"),
    "an open bracket": ("[0, 1]", "[0, 1", "not YAML"),
    "an anchor in itself": ("{steps: 30}", "&a {steps: [*a]}", "an anchor that holds itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_study_that_is_wrong_is_refused_in_one_line(write, case):
    old, new, message = REFUSED[case]
    assert old in TOY
    path = write(TOY.replace(old, new, 1))
    said = refusal(lambda: plan(load_study(path)))
    assert message in said
    assert said.startswith((path, "core:"))


def test_files_that_cannot_be_read(write, tmp_path):
    assert "no such file" in refusal(load_study, str(tmp_path / "none.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(load_study, str(tmp_path / "bytes.yaml"))
    assert "empty" in refusal(load_study, write("# nothing\n"))
    assert "must be a mapping" in refusal(load_study, write("[1, 2]"))


def test_a_study_by_name(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    write(TOY, "studies/quick.yaml")
    assert load_study("quick").name == "quick"
    assert load_study("strategy1").name == "strategy1"  # those that come with the project
    assert "not in studies/; did you mean 'quick'?; allowed: " in refusal(load_study, "quik")


def test_a_dead_setting_of_a_level_is_named():
    options = Options(sets=("visual.stride=2",))
    said = refusal(lambda: plan(load_study("strategy1", options), options))
    assert "factors.tokens.p5: visual: stride=2 has no effect when visual.levels is p5" in said


def test_a_level_that_no_arm_uses_is_looked_at_too(write):
    text = TOY.replace("one_at_a_time", "{list: {only: {noise: high}}}")
    assert "unknown" in refusal(
        lambda: plan(load_study(write(text.replace("noise: 2", "nois: 2"))))
    )
    assert [job.arm for job in plan(load_study(write(text))).jobs] == ["only", "only"]


def test_two_factors_that_set_one_thing_apart_are_refused(write):
    text = TOY.replace("noise: 0.9", "lr: 3.0")
    said = refusal(lambda: plan(load_study(write(text))))
    assert "arm 'noise=high': rate=slow and noise=high both set lr, to 0.1 and 3.0" in said


def test_sets_lie_over_the_base(write):
    options = Options(sets=("steps=7", "scale=2e0"))
    study = load_study(write(TOY), options)
    assert study.base == {"steps": 7, "scale": 2.0}
    assert {job.settings["steps"] for job in plan(study, options).jobs} == {7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(sets=("lr=1",)), "lr: given by an option, but the factor rate varies it (slow"),
        (Options(sets=("stepps=1",)), "--set: unknown setting 'stepps'; did you mean 'steps'?"),
        (Options(sets=("steps=x",)), "--set: steps: given 'x', must be of type int"),
        (Options(sets=("steps",)), "--set: given 'steps', must be path=value"),
        (Options(sets=("steps=",)), "--set: given 'steps=', must be path=value (null for none)"),
        (Options(sets=("=1",)), "--set: given '=1', must be path=value"),
        (Options(sets=("steps=1", "steps=2")), "--set: steps is given twice"),
        (Options(sets=("steps=[1",)), "--set steps: not YAML"),
        (Options(sets=("seed=1",)), "--set seed: seeds are the study's: give --seeds N"),
        (Options(seeds=0), "--seeds: given 0, must be 1 or more"),
        (Options(data=("x",)), f"--data: the core {CORE} takes none"),
        (Options(checkpoint="x"), f"--checkpoint: the core {CORE} takes none"),
    ],
)
def test_options_that_are_wrong_are_refused_in_one_line(write, options, message):
    path = write(TOY)
    assert message in refusal(lambda: plan(load_study(path, options), options))


def test_a_set_that_a_preset_varies_is_refused(write):
    text = """
question: Which recipe?
base: {backbone.name: random}
factors: {recipe: {today: {preset: v4_fixed}, ours: {preset: strategy1}}}
design: factorial
"""
    said = refusal(load_study, write(text), Options(sets=("optim.clip=2.0",)))
    assert "optim.clip: given by an option, but the factor recipe varies it (today, ours)" in said
    assert load_study(write(text), Options(sets=("optim.steps=2",))).base["optim.steps"] == 2


def test_several_sets_in_one_word():
    assert parse_sets(["a.b=1 c=x  d=[1, 2]", "e='p q'"]) == {
        "a.b": 1,
        "c": "x",
        "d": [1, 2],
        "e": "p q",
    }


def test_seeds_by_number(write):
    study = load_study(write(TOY), Options(seeds=3))
    assert study.seeds == (0, 1, 2)
    before = {job.id for job in plan(load_study(write(TOY))).jobs}
    assert before < {job.id for job in plan(study).jobs}


def test_data_names_the_folder_and_fills_the_roots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study("strategy1", Options(data=("CULane", "/data/Tu Simple/")))
    assert study.name == "strategy1@CULane+Tu_Simple"
    assert study.base["data.roots"] == [str(tmp_path / "CULane"), "/data/Tu Simple"]
    said = refusal(load_study, "strategy1", Options(data=("x",), sets=("data.roots=y",)))
    assert "--set data.roots: --data or --checkpoint says it already" in said
    weights = load_study("strategy1", Options(checkpoint="w.pth"))
    assert weights.base["backbone.checkpoint"] == str(tmp_path / "w.pth")
    assert weights.base["backbone.name"] == "clrernet_dla34"


def test_criteria_are_laid_over_the_cores(write):
    text = TOY + "criteria: {loss: 0.5, error: {final/error: 0.1}}"
    assert load_study(write(text)).criteria == (
        Criterion("loss", (Condition("final/loss", 0.5),)),
        Criterion("error", (Condition("final/error", 0.1),)),
    )
    assert load_study(write(TOY + "criteria: {loss: }")).criteria == ()


def test_a_criterion_may_ask_for_more(write):
    text = TOY + "criteria: {loss: {above: 0.5}, hits: {test/f1: {above: 0.9}, a/f1: {below: 1}}}"
    study = load_study(write(text))
    assert study.criteria == (
        Criterion("loss", (Condition("final/loss", 0.5, above=True),)),
        Criterion("hits", (Condition("test/f1", 0.9, above=True), Condition("a/f1", 1.0))),
    )
    assert load_study(write(resolved(study))).criteria == study.criteria


def test_two_levels_that_are_one_config_are_said(write):
    text = TOY.replace("fast: {lr: 1.0}", "fast: {lr: 1.0}\n    same: {lr: 0.1}")
    assert "rate: slow and same are one config, trained once" in plan(load_study(write(text))).notes


def test_a_study_extends_another(write):
    write(TOY, "under.yaml")
    text = """
extends: under
base: {scale: 2.0}
factors:
  noise:
  depth: {few: {steps: 5}, many: {steps: 50}}
criteria: {loss: 0.2}
seeds: [7]
"""
    study = load_study(write(text))
    assert study.name == "mine"
    assert study.question == "Does it run?"
    assert study.base == {"steps": 30, "scale": 2.0}
    assert [factor.name for factor in study.factors] == ["rate", "depth"]
    assert study.criteria[0].conditions[0].threshold == 0.2
    assert study.seeds == (7,)
    assert arms(study) == ["base", "rate=fast", "depth=many"]


def test_studies_that_extend_each_other(write):
    write("extends: mine", "under.yaml")
    said = refusal(load_study, write("extends: under"))
    assert "under.yaml:1: extends: mine builds on this study in turn" in said
    assert "not in studies/" in refusal(load_study, write("extends: nothing_like_it"))


def test_the_resolved_study_is_read_back_the_same(write):
    start = "{base: {rate: fast}}"
    designs = f"[{{one_at_a_time: {start}}}, {{leave_one_out: {start}}}]"
    text = TOY.replace("one_at_a_time", designs)
    more = """
name: kept
zip: []
exclude: [{rate: fast, noise: [high, wild]}]
criteria: {loss: , error: {final/error: 0.1}}
timeout: 60
attempts: 3
"""
    study = load_study(write(text + more), Options(sets=("scale=1e-3",), seeds=2))
    again = load_study(write(resolved(study), "study.yaml"))
    assert vars(again) == {**vars(study), "source": again.source}
    real = load_study("strategy1", Options(data=("/d/CULane",)))
    again = load_study(write(resolved(real), "study.yaml"))
    assert vars(again) == {**vars(real), "source": again.source}


def test_designs_that_meet_share_their_arms(write):
    text = TOY.replace("one_at_a_time", "[one_at_a_time, factorial, {list: {again: {rate: fast}}}]")
    labels = arms(load_study(write(text)))
    assert labels[:4] == ["base", "rate=fast", "noise=high", "noise=wild"]
    assert labels[4:] == ["fast/high", "fast/wild"]


def test_arms_of_one_label_are_told_apart(write):
    other = "{list: {noise=high: {rate: fast, noise: high}, base: {rate: fast, noise: wild}}}"
    labels = arms(load_study(write(TOY.replace("one_at_a_time", f"[one_at_a_time, {other}]"))))
    assert labels[:4] == ["base", "rate=fast", "noise=high", "noise=wild"]
    assert labels[4:] == ["fast/high", "fast/wild"]
    assert len(set(labels)) == len(labels)


def test_arms_that_come_to_the_same_job_are_one(write):
    text = TOY.replace("noise: 2}", "noise: 0.2}")
    jobs = plan(load_study(write(text))).jobs
    assert [job.arm for job in jobs] == [
        a for a in ("base", "rate=fast", "noise=high") for _ in "01"
    ]
    assert [arm.label for arm in jobs[0].also] == ["noise=wild"]
    assert jobs[0].also[0].levels == {"rate": "slow", "noise": "wild"}


def test_the_notes_of_a_fraction_name_its_aliases(write):
    text = TOY.replace("    wild: {noise: 2}\n", "").replace("seeds:", "zip: []\nseeds:")
    text = text.replace("factors:", "factors:\n  size: {small: {scale: 0.5}, large: {scale: 2.0}}")
    made = plan(load_study(write(text.replace("one_at_a_time", "{fractional: {resolution: 3}}"))))
    assert len(made.arms) == 4
    assert made.notes[0] == "fractional: 4 of 8 combinations, resolution 3; noise = size rate"
    assert "aliased: size = rate:noise" in made.notes


def test_ten_thousand_jobs_are_planned_in_a_gigabyte(write):
    factors = [
        f"  {name}: {{{', '.join(f'{name}{i}: {{{path}: {i + 1}e-{digit}}}' for i in range(5))}}}"
        for digit, (name, path) in enumerate(
            [
                ("a", "optim.lr"),
                ("b", "optim.clip"),
                ("c", "optim.weight_decay"),
                ("d", "loss.label_smoothing"),
            ],
            start=2,
        )
    ]
    text = "\n".join(
        [
            "question: How long?",
            "base: {backbone.name: random, optim.schedule: cosine, optim.lr_min: 0.0}",
            "factors:",
            "  e: {p5: {visual.levels: p5}, full: {visual.levels: full}}",
            "  f: {absolute: {tokenizer.mode: absolute}, rel: {tokenizer.mode: relative_disjoint}}",
            "  g: {pre: {model.norm: pre}, post: {model.norm: post}}",
            "  h: {self: {model.order: self_first}, cross: {model.order: cross_first}}",
            *factors,
            "design: factorial",
        ]
    )
    path = write(text)
    code = "import resource, sys; from ablate.study import load_study, plan; "
    code += "print(len({job.id for job in plan(load_study(sys.argv[1])).jobs}), "
    code += "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    jobs, peak = map(int, done.stdout.split())
    assert jobs == 10_000
    assert peak < 1_000_000  # KiB
