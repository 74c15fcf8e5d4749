"""Workarounds for Ray: the only modules that use its private names and undocumented behaviour.

Each function states what it works around, the version that it was seen on, and when it can go. Its
test under ``tests/unit/cluster/workarounds`` fails when Ray has changed what it relies on, or when
Ray does not need it any more. Loggers of Ray Data, which ``data`` may not take from here, are in
:mod:`recon_ray.data.loading.ray_log`.
"""
