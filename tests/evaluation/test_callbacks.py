"""What is shown while networks work, and that showing it never hides an error."""

from types import SimpleNamespace

from anomaly3d.evaluation.callbacks import ShowProgress


def test_an_error_before_the_first_step_is_not_replaced_by_another():
    ShowProgress().on_exception(None, None, ValueError("a damaged checkpoint"))


def test_a_test_is_counted_in_scans_without_those_that_fill_up_a_batch(capsys):
    data = SimpleNamespace(tested="test", split=lambda name: ["a", "b", "c"])
    trainer, module = SimpleNamespace(datamodule=data, world_size=1), SimpleNamespace(detector=object())
    progress = ShowProgress()
    progress.on_test_start(trainer, module)
    for batch in (["a", "b"], ["c", "c"]):
        progress.on_test_batch_end(trainer, module, None, {"scan_id": batch})
    progress.on_test_end(trainer, module)
    assert capsys.readouterr().out.startswith("object, test scans: 3/3")
