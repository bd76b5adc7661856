"""What a machine is like, what unimm would choose on it, and what is wrong: the readings behind `unimm doctor`.

    machine, software   readings that need no torch: a name -> a plain dict, fit for JSON
    torch_probe         readings by torch, taken in a process of their own (apart), since a broken library can end a process
    findings, checks    what is wrong and how it is mended: pure functions of readings
    choices             what unimm would use and why: the same

A reading that fails becomes {"failed": reason}, and so a finding; nothing here raises for a machine that is broken.
"""
