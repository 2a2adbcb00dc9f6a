"""Internal. Optimiser states as libraries write them, turned into the entries of PyTorch's Adam.

`clusterucb.model.optimizer_state` reads them; nothing else imports these modules.
"""
