"""Kinds of model: how each is told, saved and loaded, by its own library and in a format that runs no code.

A pickle is a program that `load` runs. It is a kind of its own that both sides must ask for.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from strongroom.errors import InputError
from strongroom.models.keras_config import LAMBDA, MAX_CONFIG, foreign_objects
from strongroom.models.on_spark import below, reading
from strongroom.models.spark_stages import foreign_stages, is_metadata
from strongroom.models.tensors import dense, library_of

__all__ = ["KINDS", "Kind", "kind_of"]


class Kind(Protocol):
    """One format.

    Attributes:
        name: In the record.
        file: What its file is called.
        packages: Whose versions the record names, the first of which a model of this kind comes from.
        in_place: Whether `save` and `load` go to the volume themselves, from all machines of their engine; the others
            are given a file that is written beside, or brought to hand.
        fills: Whether `load` may put the weights into a model that it is given.
        names_types: Whether a model of this kind names types, some of which may have to be trusted.
    """

    name: str
    file: str
    packages: tuple[str, ...]
    in_place: bool = False
    fills: bool = False
    names_types: bool = False

    def takes(self, model: object) -> bool:
        """Return whether `model` is of this kind."""
        ...

    def save(self, model: Any, path: Path) -> None:
        """Write `model` to `path`."""
        ...

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        """Return the model in `path`, or `into` with its weights."""
        ...


_SAME = "strongroom.same:"


class SafeTensors(Kind):
    """State of a PyTorch module, or a dictionary of PyTorch tensors or NumPy arrays."""

    name = "safetensors"
    file = "model.safetensors"
    packages: tuple[str, ...] = ("torch", "safetensors")
    fills = True

    def takes(self, model: object) -> bool:
        if isinstance(model, dict):
            return any(library_of(value) for value in model.values())
        return library_of(model) == "torch" and hasattr(model, "state_dict")

    def save(self, model: Any, path: Path) -> None:
        library, tensors, same = dense(model if isinstance(model, dict) else model.state_dict())
        writer = _need(f"safetensors.{library}", "safetensors")
        try:
            writer.save_file(tensors, path, {_SAME + name: twin for name, twin in same.items()} or None)
        except (KeyError, import_module("safetensors").SafetensorError) as exc:
            raise InputError(
                f"safetensors does not write the model: {exc}", hint="is there room? Older ones know fewer types"
            ) from exc

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        library = _need("safetensors", "safetensors")
        try:
            framework = _need("safetensors.torch", "safetensors") and "pt"
        except InputError:  # no torch here
            if into is not None:
                raise
            framework = "np"
        try:
            with library.safe_open(path, framework) as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
                said = {k.removeprefix(_SAME): v for k, v in (file.metadata() or {}).items() if k.startswith(_SAME)}
                same = {name: found[twin] for name, twin in said.items() if twin in found}
        except (library.SafetensorError, AttributeError, KeyError, TypeError) as exc:  # a type that NumPy has not
            raise InputError(
                f"{path.name} cannot be read: {exc}", hint="is it whole? Some types are read by torch alone"
            ) from exc
        state = {**same, **found}  # weights that a module has under several names are in the file once
        if into is None:
            return state
        try:
            into.load_state_dict(state)
        except (AttributeError, RuntimeError) as exc:
            raise InputError(f"{path.name} does not fit into the {type(into).__qualname__}: {exc}") from exc
        return into


class Keras(Kind):
    """A Keras model, with its layers; those that hold code are neither saved nor loaded.

    Layers, losses and the like of a module that is not Keras's are saved. Who loads them has to know them, and name
    them in `trusted`.
    """

    name = "keras"
    file = "model.keras"
    packages: tuple[str, ...] = ("keras",)
    fills = True
    names_types = True

    def takes(self, model: object) -> bool:
        return _is_of(model, "keras")

    def save(self, model: Any, path: Path) -> None:
        model.save(path)
        if LAMBDA in _named(path):  # better now than after hours of training, when it is to be loaded
            raise InputError(
                f"the model is refused: it has a Keras layer of a {', '.join(LAMBDA)}",
                hint="write the lambda as a named layer of your own",
            )

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        for name, why in _named(path):
            if name not in trusted:
                raise InputError(
                    f"the model holds a {name:.100}, {why}",
                    hint=f"if you know it: models.load(..., trusted=[{name!r:.100}])",
                )
        found = _need("keras.saving", "keras").load_model(path, safe_mode=True)
        if into is None:
            return found
        into.set_weights(found.get_weights())
        return into


class Onnx(Kind):
    """An ONNX graph."""

    name = "onnx"
    file = "model.onnx"
    packages: tuple[str, ...] = ("onnx",)

    def takes(self, model: object) -> bool:
        return _is_of(model, "onnx") and type(model).__name__ == "ModelProto"

    def save(self, model: Any, path: Path) -> None:
        _all_inside(model)
        path.write_bytes(model.SerializeToString())

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        model = _need("onnx", "onnx").load_model(path, load_external_data=False)
        _all_inside(model)
        return model


class SparkML(Kind):
    """A model or pipeline of Spark's MLlib, in the folder that Spark itself writes.

    Spark loads the classes that the folder names, at every depth: they have to be its own, and none that runs SQL.
    """

    name = "spark-ml"
    file = "spark-ml"
    packages: tuple[str, ...] = ("pyspark",)
    in_place = True
    names_types = True

    def takes(self, model: object) -> bool:
        return any(cls.__module__.startswith("pyspark.ml.") for cls in type(model).__mro__) and hasattr(model, "write")

    def save(self, model: Any, path: Path) -> None:
        model.write().overwrite().save(f"file:{path.absolute()}")

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        reader, at = _need("pyspark.ml.util", "pyspark").DefaultParamsReader, f"file:{path.absolute()}"
        session = _need("pyspark.sql", "pyspark").SparkSession.builder.getOrCreate()
        stages = [file for file in below(path) if is_metadata(str(file.relative_to(path)))]
        if not stages:
            raise InputError(f"{path} holds no metadata of a Spark ML model")
        for stage in stages:
            with reading(stage) as at_hand, at_hand.open("rb") as file:
                found = [f for f in foreign_stages(file, stage.name) if f[0] not in trusted]
            if found:
                raise InputError(
                    f"{stage.relative_to(path)}: the model holds a {found[0][0]:.100}, {found[0][1]}",
                    hint=f"if you know it: models.load(..., trusted=[{found[0][0]!r:.100}])",
                )
        return reader.loadParamsInstance(at, session)


class XGBoost(Kind):
    """An XGBoost booster, or the estimator around one; loaded as a booster unless `into` is given."""

    name = "xgboost"
    file = "model.ubj"
    packages: tuple[str, ...] = ("xgboost",)
    fills = True

    def takes(self, model: object) -> bool:
        return _is_of(model, "xgboost")

    def save(self, model: Any, path: Path) -> None:
        model.save_model(path)

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        model = _need("xgboost", "xgboost").Booster() if into is None else into
        model.load_model(path)
        return model


class LightGBM(Kind):
    """A LightGBM booster, or the one of an estimator."""

    name = "lightgbm"
    file = "model.txt"
    packages: tuple[str, ...] = ("lightgbm",)

    def takes(self, model: object) -> bool:
        return _is_of(model, "lightgbm")

    def save(self, model: Any, path: Path) -> None:
        getattr(model, "booster_", model).save_model(path)

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        return _need("lightgbm", "lightgbm").Booster(model_file=path)


class Skops(Kind):
    """A scikit-learn estimator; what skops does not know to be safe (trees, for one) must be named in `trusted`."""

    name = "skops"
    file = "model.skops"
    packages: tuple[str, ...] = ("sklearn", "skops")
    names_types = True

    def takes(self, model: object) -> bool:
        return _is_of(model, "sklearn")

    def save(self, model: Any, path: Path) -> None:
        _need("skops.io", "skops").dump(model, path)

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        skops = _need("skops.io", "skops")
        unknown = sorted(set(skops.get_untrusted_types(file=path)) - set(trusted))
        if unknown:
            raise InputError(
                f"the model holds {', '.join(unknown)}, which is not known to be safe to load",
                hint=f"if you know it: models.load(..., trusted={unknown!r})",
            )
        return skops.load(path, trusted=list(trusted))


class Pickle(Kind):
    """Any Python object. Loading it runs whatever its maker wrote into it."""

    name = "pickle"
    file = "model.pkl"
    packages: tuple[str, ...] = ()

    def takes(self, model: object) -> bool:  # never by itself
        return False

    def save(self, model: Any, path: Path) -> None:
        with path.open("wb") as file:
            pickle.dump(model, file)

    def load(self, path: Path, *, into: Any, trusted: Sequence[str]) -> Any:
        with path.open("rb") as file:
            return pickle.load(file)  # noqa: S301  # saving.load asked


_ALL: tuple[Kind, ...] = (Keras(), Onnx(), SparkML(), XGBoost(), LightGBM(), Skops(), SafeTensors(), Pickle())
KINDS = {kind.name: kind for kind in _ALL}
"""By name. Before a kind come those whose classes may derive from its own: XGBoost's from scikit-learn's."""


def kind_of(model: object) -> Kind:
    """Return the kind that takes `model`.

    Raises:
        InputError: None does.
    """
    for kind in KINDS.values():
        if kind.takes(model):
            return kind
    raise InputError(
        f"there is no safe format for a {type(model).__module__}.{type(model).__qualname__}",
        hint='save its tensors or arrays, or say kind="pickle", unsafe_pickle=True: whoever loads it runs its code',
    )


def _named(path: Path) -> list[tuple[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if (info := archive.getinfo("config.json")).file_size > MAX_CONFIG:
                raise InputError(f"the description in {path.name} is too long to be looked into")
            return list(foreign_objects(archive.read(info)))
    except (KeyError, OSError, zipfile.BadZipFile) as exc:
        raise InputError(f"{path.name} is no Keras model: {exc}") from exc


def _all_inside(message: Any) -> None:
    # An ONNX tensor may say that its values lie in another file, which is neither sealed nor read with it.
    for field, value in message.ListFields():
        if (field.name, value) == ("data_location", 1):
            raise InputError(
                f"the values of the ONNX tensor {message.name!r:.80} lie in another file",
                hint="onnx.load_model(path) takes them in, or onnx.external_data_helper.load_external_data_for_model",
            )
        for one in value if field.message_type and not hasattr(value, "ListFields") else [value]:
            if hasattr(one, "ListFields"):
                _all_inside(one)


def _is_of(value: object, package: str) -> bool:
    # By the names of its classes, so that nothing is imported that the program does not use.
    return any(cls.__module__.split(".")[0] == package for cls in type(value).__mro__)


def _need(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as exc:
        raise InputError(f"{exc.name or package} is not installed here", hint=f"pip install {package}") from exc
