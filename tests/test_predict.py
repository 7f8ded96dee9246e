import dataclasses
import json
import shutil
import sys

import av
import numpy as np
import pandas as pd
import pytest
import torch

from emilib import EMOTIONS, profiles
from emilib import __main__ as command_line
from emilib.corpus import media
from emilib.corpus.media import MediaError
from emilib.export import predictor_of
from emilib.pipeline import Workspace
from emilib.plots import predict_plots
from emilib.predict import Clip, EmiPredictor
from emilib.training.loop import predict as predict_features
from tests.conftest import write_media

E, SPREADS = list(EMOTIONS), [f"{e} sd" for e in EMOTIONS]


@pytest.fixture(autouse=True)
def _no_whisper(monkeypatch, tmp_path):
    """Words are what a test gives, also on a machine that has Whisper's weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EMI_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    small = profiles.get("smoke")
    counts = {"train": 10, "validation": 5, "test": 1}
    # No self-supervised start: what the encoders have learnt changes nothing that is tested here.
    profile = dataclasses.replace(
        small, corpus_size=counts, seeds=(0, 1), workers=1, warm_start=None
    )
    return Workspace(profile, home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def predictor(workspace):
    return predictor_of(workspace, "taemi")


@pytest.fixture(scope="module")
def folder(predictor, tmp_path_factory):
    return predictor.save_pretrained(tmp_path_factory.mktemp("model") / "taemi")


def make_video(path, seconds=3.0, picture=True, sound=True, fps=10):
    """A file whose grey level and pitch rise with time, so that no two moments are alike."""

    def rising(number, height, width):
        image = np.full((height, width, 3), 255 * number // round(seconds * fps), np.uint8)
        image[:, : width * number // round(seconds * fps)] = (30, 200, 90)
        return image

    time = np.arange(round(seconds * 16000)) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (200 + 30 * time) * time)
    times = np.arange(round(seconds * fps)) / fps if picture else ()
    return write_media(path, times, wave[None] if sound else None, rate=fps, make=rising)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("video") / "short.mp4")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("video") / "long.mp4", seconds=41.5, fps=5)


# --------------------------------------------------------------- the same as the corpus's own path


def test_prediction_equals_the_workspaces_features_and_models(workspace, predictor):
    data = workspace.features("ours").validation
    position = int(np.flatnonzero(data.present.all(axis=1))[0])
    row = workspace.clips.set_index("id").loc[data.ids[position]]
    clip = Clip(row["video"], row["audio"], row["faces"], row["transcript"])
    found = next(predictor.predictions(clip))
    results = workspace.results(["taemi"])
    expected = [
        predict_features(results.model("taemi", seed), data)[position]
        for seed in workspace.profile.seeds
    ]
    # Features are kept in half precision, and a batch's padding moves their last bit.
    np.testing.assert_allclose(found.intensity[:, 0], expected, atol=2e-3)
    assert np.std(expected) > 5e-3
    table = predictor.predict(clip)
    mean, spread = np.mean(expected, axis=0).clip(0, 1), np.std(expected, axis=0, ddof=1)
    np.testing.assert_allclose(table[E].to_numpy(float)[0], mean, atol=2e-3)
    np.testing.assert_allclose(table[SPREADS].to_numpy(float)[0], spread, atol=3e-3)
    assert table["missing"].tolist() == [""]
    assert table["status"].tolist() == ["ok"]


def test_experiments_that_no_video_can_be_given_to_are_refused(workspace):
    for name in ("baseline_average", "vit_baseline", "savchenko_2025_leaked"):
        with pytest.raises(ValueError, match=f"{name}.*can't be used on a video"):
            predictor_of(workspace, name)
    with pytest.raises(ValueError, match="no experiment 'tami'; there are"):
        predictor_of(workspace, "tami")


# ------------------------------------------------------------------------------------------ folders


def test_a_saved_predictor_gives_identical_numbers(predictor, folder, video):
    again = EmiPredictor.from_pretrained(folder)
    before = next(predictor.predictions(video, text="I am so happy."))
    after = next(again.predictions(video, text="I am so happy."))
    np.testing.assert_array_equal(before.intensity, after.intensity)
    assert again.note == predictor.note
    assert again.settings == predictor.settings
    assert list(again.models) == [0, 1]


def test_the_folder_holds_no_pickle_and_says_what_it_is(folder):
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors", ".md"}
    card = (folder / "README.md").read_text()
    for part in ("drawn faces and synthetic voices", "license: mit", "seeds 0, 1", "| vision |"):
        assert part in card
    assert "Whisper" not in card, "advice for the machine that wrote it"
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {(folder / "config.json").stat().st_mode}
    facts = json.loads((folder / "config.json").read_text())["facts"]
    assert f"{facts['rho']:.3f}" in card


def test_folders_that_are_no_model_give_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*none; make one with"):
        EmiPredictor.from_pretrained(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no model of this package"):
        EmiPredictor.from_pretrained(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; expected the folder"):
        EmiPredictor.from_pretrained(tmp_path / "file")
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "moments.safetensors").unlink()
    with pytest.raises(ValueError, match="is no complete predictor"):
        EmiPredictor.from_pretrained(cut)
    shutil.copy(folder / "moments.safetensors", cut)
    (cut / "seed-1" / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="damaged weights"):
        EmiPredictor.from_pretrained(cut)


def test_a_configuration_that_lacks_something_gives_one_sentence(folder, tmp_path):
    cut = shutil.copytree(folder, tmp_path / "cut")
    config = json.loads((cut / "config.json").read_text())
    del config["facts"]["rho"], config["seeds"]
    (cut / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json lacks rho, seeds; make one with"):
        EmiPredictor.from_pretrained(cut)


def test_an_encoder_that_wants_code_or_a_pickle_is_refused(folder, tmp_path):
    asks = shutil.copytree(folder, tmp_path / "asks")
    config = json.loads((asks / "vision" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.Model"}
    (asks / "vision" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="asks for code of its own"):
        EmiPredictor.from_pretrained(asks)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "audio" / "model.safetensors").rename(pickled / "audio" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*\.safetensors weights"):
        EmiPredictor.from_pretrained(pickled)
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model": "Workspace"}))
    with pytest.raises(ValueError, match="model 'Workspace' is unknown"):
        EmiPredictor.from_pretrained(other)


# ------------------------------------------------------------------------- several clips, bad clips


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    base = tmp_path_factory.mktemp("mixed")
    (base / "zero.mp4").touch()
    (base / "text.mp4").write_text("these are words, not a video\n" * 40)
    return {
        "both": make_video(base / "both.mp4", 2.0),
        "mute": make_video(base / "mute.mp4", 2.5, sound=False),
        "blind": make_video(base / "blind.mp4", 3.0, picture=False),
        "zero": base / "zero.mp4",
        "text": base / "text.mp4",
        "none": base / "none.mp4",
    }


def test_each_bad_file_is_a_row_with_its_reason_and_the_others_go_on(predictor, mixed):
    table = predictor.predict(list(mixed.values())).set_index(np.array(list(mixed)))
    assert table["status"].tolist() == ["ok"] * 3 + ["failed"] * 3
    assert table.loc["both", "missing"] == "text"
    assert table.loc["mute", "missing"] == "audio, text"
    assert table.loc["mute", "problems"] == "no sound track"
    assert table.loc["blind", "missing"] == "frames, text"
    assert table.loc["blind", "problems"] == "no picture"
    assert table[E].iloc[:3].to_numpy(float).min() >= 0
    assert table[E].iloc[3:].isna().all(axis=None)
    assert "is empty (0 bytes)" in table.loc["zero", "reason"]
    assert "is no media file" in table.loc["text", "reason"]
    assert "There is no file" in table.loc["none", "reason"]
    assert "drawn faces and synthetic voices" in table.attrs["note"]
    assert "no face detector" in table.loc["both", "notes"]
    assert "Whisper's weights are not on this machine" in table.loc["both", "notes"]
    with pytest.raises(MediaError, match="is empty"):
        predictor.without(mixed["zero"])


def test_order_and_company_change_no_number(predictor, mixed, monkeypatch):
    paths = [mixed[name] for name in ("both", "mute", "blind", "zero")]
    first = predictor.predict(paths).set_index("clip")
    monkeypatch.setattr(predict_module, "WORTH", 0.0)  # now in other processes, after the first
    ahead = []
    read_ahead = predict_module._read_ahead

    def noted(clips, *given):
        ahead.append(len(clips))
        return read_ahead(clips, *given)

    monkeypatch.setattr(predict_module, "_read_ahead", noted)
    second = predictor.predict(paths[::-1], workers=2).set_index("clip")
    assert ahead == [3]
    columns = [*E, *SPREADS, "missing", "problems", "reason"]
    assert first[columns].equals(second.loc[first.index, columns])


def test_the_number_of_threads_changes_no_number(predictor, video):
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(next(predictor.predictions([video], text="So good.")).intensity)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("seconds", "count", "started"), [(0.05, 12, 0), (1.5, 3, 2), (0.2, 40, 39)]
)
def test_processes_are_started_where_they_save_more_than_they_cost(
    monkeypatch, seconds, count, started
):
    """Two processes halve what is left: that has to be more than a second."""
    material = predict_module._Material(seconds=seconds)
    monkeypatch.setattr(predict_module, "_read", lambda *_, **__: material)
    monkeypatch.setattr(
        predict_module, "_read_ahead", lambda clips, *_: (ahead.append(len(clips)), clips)[1]
    )
    ahead: list[int] = []
    clips = [Clip(f"{i}.mp4") for i in range(count)]
    assert len(list(predict_module._read_all(clips, None, workers=2))) == count
    assert sum(ahead) == started
    ahead.clear()
    assert len(list(predict_module._read_all(clips, None, workers=1))) == count
    assert ahead == []


def test_damage_is_read_as_the_corpus_was(video, tmp_path, predictor):
    """What a decoder paints over damage depends on its threads."""
    broken = bytearray(video.read_bytes())
    middle = len(broken) // 2
    broken[middle : middle + 400] = bytes(400)
    path = tmp_path / "broken.mp4"
    path.write_bytes(broken)
    one, all_cores = (
        predict_module._read(Clip(path), predictor.settings, threads=t) for t in (1, 0)
    )
    assert one.damaged == all_cores.damaged > 0
    np.testing.assert_array_equal(one.frames, all_cores.frames)


def test_an_encrypted_file_is_refused(video, tmp_path, predictor):
    """FFmpeg decodes it without a word; half of the noise would pass for sound."""
    key = "00112233445566778899aabbccddeeff"
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": key,
        "encryption_kid": key,
    }
    path = tmp_path / "locked.mp4"
    with av.open(str(video)) as source, av.open(str(path), "w", options=options) as locked:
        streams = {s.index: locked.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                locked.mux(packet)
    table = predictor.predict([path, video])
    assert table["status"].tolist() == ["failed", "ok"]
    assert table["reason"][0] == f"{path} is encrypted; give a file without protection"


def test_texts_must_fit_the_clips(predictor, video):
    with pytest.raises(ValueError, match="one text for 2 clips"):
        predictor.predictions([video, video], text="words")
    with pytest.raises(ValueError, match="a text for each of 1 clips, came 2"):
        predictor.predictions([video], text=["a", "b"])
    with pytest.raises(ValueError, match="at least one video file"):
        predictor.predictions([])
    with pytest.raises(ValueError, match="a video or an audio file"):
        predictor.predictions(Clip(None))


# ------------------------------------------------------------------------- modalities and attention


def test_a_removed_modality_is_present_false(predictor, video):
    words = "I am really going to win."
    table = predictor.without(video, text=words)
    assert list(table.index) == ["all", "without frames", "without audio", "without text"]
    material = predict_module._read(Clip(video), predictor.settings)
    span = np.array([0.0]), np.array([material.duration])
    data, _ = predictor._features(material, *span, words)
    for column in range(3):
        inputs = data.batch(np.arange(1)).inputs()
        inputs["present"][:, column] = False
        with torch.inference_mode():
            outputs = [model(**inputs).intensity[0].numpy() for model in predictor.models.values()]
        expected = np.mean(outputs, axis=0).clip(0, 1)
        np.testing.assert_allclose(table.iloc[column + 1], expected, atol=1e-6)
    without_words = predictor.predict(video, text="")[E].to_numpy(float)[0]
    np.testing.assert_allclose(table.loc["without text"], without_words, atol=1e-6)


def test_look_gives_attention_that_sums_to_one_over_the_clip(predictor, video):
    look = predictor.look(video, text="I am happy.")
    assert look.images.shape == (15, 3, 64, 64)
    np.testing.assert_allclose(look.times, np.arange(15) / 5, atol=0.02)
    for name in ("frames", "audio"):
        attention = look.attention[name]
        assert attention.shape[:2] == (2, 4)
        np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)
        borders = look.attention_borders[name]
        assert len(borders) == attention.shape[-1] + 1
        assert (np.diff(borders) >= 0).all()
        assert borders[0] == pytest.approx(0, abs=0.02)
        assert borders[-1] == pytest.approx(look.end, abs=0.1)
    assert look.weights is None
    figure = predict_plots.look(look, predictor.note)
    said = [text.get_text() for text in figure.texts] + [a.get_ylabel() for a in figure.axes]
    assert "What the models made of short.mp4" in said
    assert "attention\nover frames" in said
    assert predict_plots.png(figure).startswith(b"\x89PNG")


def test_look_of_dual_stage_gives_its_weights(workspace, mixed):
    predictor = predictor_of(workspace, "dual_stage_vat")
    look = predictor.look(mixed["mute"], text="Fine.")
    assert look.attention is None
    assert look.weights.shape == (2, 6, 3)
    np.testing.assert_allclose(look.weights.sum(axis=2), 1, atol=1e-6)
    assert (look.weights[:, :, 1] == 0).all()
    np.testing.assert_allclose(look.weight_borders, np.linspace(0, look.end, 7))
    assert list(look.without.index) == ["all", "without frames", "without text"]
    figure = predict_plots.look(look)
    assert "no sound" in [text.get_text() for axes in figure.axes for text in axes.texts]


# ------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize("duration", [3.0, 12.0, 12.01, 13.0, 18.0, 41.5, 3600.0])
@pytest.mark.parametrize("step", [0.5, 5.0, 12.0])
def test_windows_cover_the_clip(duration, step):
    starts, ends = predict_module._windows(duration, 12.0, step)
    assert starts[0] == 0
    assert ends[-1] == pytest.approx(duration)
    assert (starts[1:] <= ends[:-1] + 1e-9).all()
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= step + 1e-9).all()
    assert len(starts) == 1 or np.allclose(ends - starts, 12)


def test_a_long_clip_is_the_mean_of_its_windows(predictor, long_video):
    table = predictor.over_time(long_video, text="Well.", window=12, step=6)
    np.testing.assert_allclose(table["start"], [0, 6, 12, 18, 24, 29.5], atol=0.3)
    np.testing.assert_allclose(table["end"].iloc[-1], 41.5, atol=0.3)
    assert (table["missing"] == "").all()
    row = predictor.predict(long_video, text="Well.").iloc[0]
    assert row["windows"] == 6
    assert "Mean over 6 windows of 12 s. Each is given all the words." in row["notes"]
    np.testing.assert_allclose(row[E].astype(float), table[E].mean(), atol=1e-6)
    figure = predict_plots.over_time(table, predictor.emotions, "long.mp4", predictor.note)
    assert [axes.get_ylabel().replace("\n", " ") for axes in figure.axes] == E
    for axes, emotion in zip(figure.axes, E, strict=True):
        np.testing.assert_allclose(axes.lines[1].get_ydata(), table[emotion])


def test_a_streamed_window_equals_the_same_piece_read_at_once(predictor, long_video, monkeypatch):
    streamed = predictor.over_time(long_video, window=10, step=10)
    monkeypatch.setattr(predict_module, "LONGEST", 60.0)
    at_once = predictor.over_time(long_video, window=10, step=10)
    np.testing.assert_allclose(streamed["start"], at_once["start"], atol=0.21)
    # The last window hangs on the clip's exact length; the others are the same pieces.
    np.testing.assert_allclose(streamed[E][:-1], at_once[E][:-1], atol=2e-4)
    assert len(streamed[E].round(4).drop_duplicates()) > 1


def test_streams_give_what_decode_gives(long_video, monkeypatch):
    problems: list[str] = []
    monkeypatch.setattr(media, "BLOCK", 50)
    blocks = list(media.picture_blocks(long_video, 5.0, 64, problems))
    whole = media.decode(long_video, fps=5.0, size=64)
    assert max(len(images) for images, _ in blocks) <= 55
    np.testing.assert_array_equal(np.concatenate([i for i, _ in blocks]), whole.images)
    np.testing.assert_array_equal(np.concatenate([t for _, t in blocks]), whole.times)
    waveform = media.sound_on_disk(long_video, problems)
    assert isinstance(waveform, np.memmap)
    np.testing.assert_array_equal(waveform, media.as_int16(whole.waveform))
    assert problems == []


def test_look_into_a_long_clip(predictor, long_video):
    look = predictor.look(long_video, start=20.0)
    assert (look.start, look.end) == (20.0, 32.0)
    assert look.times.min() >= 20
    assert look.times.max() < 32
    assert look.attention_borders["audio"][0] == 20
    with pytest.raises(ValueError, match="has nothing at 50 s"):
        predictor.look(long_video, start=50.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"window": 0.5}, "window"), ({"window": 90}, "window"), ({"step": 13}, "step")],
)
def test_windows_that_make_no_sense_are_refused(predictor, video, given, said):
    with pytest.raises(ValueError, match=f"^{said}: expected"):
        predictor.predict(video, **given)


# --------------------------------------------------------------------------------- the command line


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["emilib", *map(str, arguments)])
    return command_line.main()


def test_words_of_the_command(tmp_path):
    (tmp_path / "a.txt").write_text("I am glad.")
    clips = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    assert prediction_files.words_of(clips, str(tmp_path)) == ["I am glad.", None]
    assert prediction_files.words_of(clips[:1], str(tmp_path / "a.txt")) == ["I am glad."]
    assert prediction_files.words_of(clips[:1], "Well.") == ["Well."]
    assert prediction_files.words_of(clips, None) == [None, None]
    with pytest.raises(ValueError, match="one text for 2 clips; give a folder"):
        prediction_files.words_of(clips, "Well.")
    with pytest.raises(ValueError, match=r"there is no file .*none\.txt"):
        prediction_files.words_of(clips[:1], str(tmp_path / "none.txt"))


def test_the_command_writes_table_files_and_pictures(
    folder, mixed, long_video, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    arguments = ["--model", folder, "--json", out / "a.json", "--csv", out / "a.csv"]
    code = run_command(monkeypatch, "predict", mixed["both"], long_video, *arguments)
    printed = capsys.readouterr()
    assert code == 0
    assert "drawn faces and synthetic voices" in printed.out
    assert "1/2" in printed.err
    assert "1/2" not in printed.out
    document = json.loads((out / "a.json").read_text())
    assert [len(clip["windows"]) for clip in document["clips"]] == [1, 6]
    assert (out / "a.csv").read_text().startswith("clip,status,Admiration,Amusement")

    arguments = ["--window", "12", "--step", "12", "--picture", out, "--csv", out / "b.csv"]
    clips = (long_video, mixed["zero"])
    code = run_command(monkeypatch, "predict", *clips, "--model", folder, *arguments)
    printed = capsys.readouterr()
    assert code == 1
    assert "1 of 2 files could not be predicted" in printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith(str(long_video))]
    assert len(lines) == 4
    rows = pd.read_csv(out / "b.csv")
    for line, row in zip(lines, rows.to_dict("records"), strict=False):
        for emotion in E:
            assert f"{row[emotion]:.2f} ±{row[f'{emotion} sd']:.2f}" in line
        assert line.endswith("words")
    assert {path.name for path in out.glob("*.png")} == {"long.png", "long-over-time.png"}
    assert len((out / "b.csv").read_text().splitlines()) == 1 + 4 + 1


def test_the_command_says_what_is_wrong_in_one_line(video, tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, "predict", video, "--model", tmp_path / "none") == 1
    assert capsys.readouterr().err.startswith("emilib: There is no folder")
