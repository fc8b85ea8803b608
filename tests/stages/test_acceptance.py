"""Acceptance: agreement with the base on text and page, on every kernel that opens an export."""

import pytest

from colq_utils.base.errors import ColqError
from colq_utils.model import kernels, loading
from colq_utils.stages import quantize
from colq_utils.stages.quantize import acceptance


def test_every_export_agrees_with_the_base_on_text_and_page(experiment, manifests, page_images):
    table = quantize.accept(experiment, ["alpha beta", "gamma delta epsilon"], page_images)
    assert len(table) == 5 and table[["loads", "runs", "finite"]].all().all()
    rtn = table[table["method"] == "rtn"].set_index("export")
    assert (rtn[["cosine_query_mean", "cosine_page_mean"]] > 0.9).all().all()
    assert (rtn[["cosine_query_mean", "cosine_page_mean"]].nunique() == 1).all(), (
        "three packings of the same numbers"
    )
    assert (table["opened_by"] == "ark").all() and (table["opened_cosine"] > 0.999).all(), (
        "AutoRound's loader agrees on a packed kernel"
    )
    assert (table["tensor_bytes"] < table["base_bytes"]).all() and (table["fallback"] == "").all()


def test_a_kernel_that_gives_no_numbers_is_no_agreement(experiment, manifests, page_images, monkeypatch):
    opened = loading.open_model

    def spoilt(path, *rest):
        model = opened(path, *rest)
        if "checkpoints" in path:  # as a kernel of the loader computes it
            model.embedding_proj_layer.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(acceptance.loading, "open_model", spoilt)
    table = quantize.accept(experiment, ["alpha beta"], page_images[:1])
    assert table["opened_cosine"].isna().all() and not table["accepted"].any()


def test_without_ark_the_torch_kernel_is_named(experiment, manifests, page_images, monkeypatch):
    require = kernels.require

    def lacking(backend):
        if backend == "ark":
            raise ColqError("no ark here")
        require(backend)

    monkeypatch.setattr(kernels, "require", lacking)
    table = quantize.accept(experiment, ["alpha beta"], page_images[:1]).set_index(["variant", "export"])
    assert table.loc[("random-w4a16-rtn", "auto_round"), "opened_by"] == "torch"
    assert table.loc[("random-w4a16-rtn", "auto_awq"), "opened_by"] == "not opened: no ark here"
    assert table["accepted"].all() and table["opened_cosine"].dropna().gt(0.999).all()


def test_a_manifest_that_is_missing_names_the_experiment(experiment, tmp_path):
    with pytest.raises(ColqError, match="make quantize EXPERIMENT=random"):
        acceptance.compare(
            experiment.model_copy(update={"output": tmp_path}), "random-w4a16-rtn", "auto_round", [], [], {}
        )
