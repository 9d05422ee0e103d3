"""Models as programs save and load them: safe formats, and a record of how a model was made.

    import strongroom.models as models

    models.save(net, "/work/model", parameters={"epochs": 2}, metrics={"accuracy": 0.97})
    tensors = models.load("/work/model")

The folder is a volume of the job, so the guest seals what is saved, under the volume's named key; outside an enclave it
is a plain folder, for `strongroom model seal`. Which job made a model, and from what, is not the program's to say: the
trust service records it when the job's outputs are committed (`strongroom model show`).
"""

from strongroom.models.kinds import KINDS, Kind
from strongroom.models.record import RECORD_FILE, ModelRecord
from strongroom.models.saving import load, save

__all__ = ["KINDS", "RECORD_FILE", "Kind", "ModelRecord", "load", "save"]
