"""verl's data bus in one process: rows by key, as the driver and the workers see them."""

import torch
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta


class TransferQueueStandIn:
    """The calls that verl's trainer makes of the module `transfer_queue`."""

    def __init__(self):
        self.rows, self.tags = {}, {}

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        for index, key in enumerate(keys):
            row = self.rows.setdefault(key, {})
            for name in fields.keys() if fields is not None else []:
                value = fields[name][index]
                row[name] = value.clone() if isinstance(value, torch.Tensor) else getattr(value, "data", value)
            if tags is not None:
                self.tags[key] = tags[index]
        return KVBatchMeta(
            keys=list(keys),
            tags=[self.tags[key] for key in keys],
            partition_id=partition_id,
            fields=sorted(set.union(*(set(self.rows[key]) for key in keys))),
        )

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        rows = [self.rows[key] for key in keys]
        batch = TensorDict({}, batch_size=len(keys))
        for name in rows[0] if select_fields is None else select_fields:
            if name not in rows[0]:
                continue
            values = [row[name] for row in rows]
            if isinstance(values[0], torch.Tensor):
                batch[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
            else:
                batch[name] = NonTensorStack(*values)
        return batch
