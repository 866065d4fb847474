"""Faults that whoever runs the gateway can mend; the command line prints each as one line.

OperatorError
├── SettingsError             settings.py: a variable or flag that cannot work, by its name
├── PepperError               pepper.py: the secret under all keys is missing, unreadable, or another store's
├── KeyNotFoundError          keys.py: no key has this id
├── StoreError                storage/base.py
│   ├── StoreNotMigratedError     no store yet, or an older one: run `migrate`
│   └── StoreUnavailableError     the disk is full, the file is locked or damaged
└── LedgerError               ledger/
    ├── StateLockedError          another process owns this state directory
    └── LedgerUnavailableError    a record cannot be made durable now
"""


class OperatorError(Exception):
    """Base of the tree. The message is one line: the fault, the value, the way out."""
