"""The store: a database with this version's schema, and its tables."""

from pathlib import Path

from deepseek_gateway.errors import StoreError
from deepseek_gateway.storage.audit import AuditTable
from deepseek_gateway.storage.balances import BalanceTable
from deepseek_gateway.storage.books import Books
from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.keys import KeyTable
from deepseek_gateway.storage.ledger import LedgerTable
from deepseek_gateway.storage.lives import LifeTable
from deepseek_gateway.storage.meta import MetaTable
from deepseek_gateway.storage.migrate import Migration, migrate, pending_migrations
from deepseek_gateway.storage.owners import OwnerTable
from deepseek_gateway.storage.payloads import PayloadTable
from deepseek_gateway.storage.people import PeopleTables
from deepseek_gateway.storage.rollups import RollupTable
from deepseek_gateway.storage.rules import RuleTable
from deepseek_gateway.storage.sqlite import SqliteDatabase
from deepseek_gateway.storage.statistics import StatisticsTable
from deepseek_gateway.storage.usage import UsageTable
from deepseek_gateway.storage.web import WebTable
from deepseek_gateway.storage.words import WordTables

ADVICE = "run `deepseek-gateway migrate`"


class Store:
    """All tables of one database. Calls block; whoever has an event loop calls them from a thread.

    Raises:
        StoreError: the database needs `deepseek-gateway migrate`, or is of a newer version.
    """

    def __init__(self, database: Database) -> None:
        if pending := pending_migrations(database):
            raise StoreError(f"the store lacks {', '.join(migration.name for migration in pending)}: {ADVICE}")
        self.database = database
        self.audit = AuditTable(database)
        self.balances = BalanceTable(database)
        self.keys = KeyTable(database)
        self.people = PeopleTables(database)
        self.owners = OwnerTable(database)
        self.ledger = LedgerTable(database, self.owners)
        self.lives = LifeTable(database, self.owners)
        self.payloads = PayloadTable(database)
        self.books = Books(self.ledger, self.lives, self.audit)
        self.meta = MetaTable(database)
        self.rules = RuleTable(database)
        self.words = WordTables(database)
        self.statistics = StatisticsTable(database)
        self.usage = UsageTable(database)
        self.rollups = RollupTable(database)
        self.web = WebTable(database)

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()


def open_database(path: Path, url: str | None) -> Database:
    """PostgreSQL where a URL is given, else the SQLite file, made when it is not there.

    Raises:
        StoreError: the URL is of another kind, or its driver is not installed.
        StoreUnavailableError: the database cannot be reached.
    """
    if url is None:
        return SqliteDatabase(path)
    if not url.startswith(("postgresql://", "postgres://")):
        raise StoreError("GATEWAY_STORE_URL is no postgresql:// URL; leave it out for SQLite in the state directory")
    try:
        from deepseek_gateway.storage.postgres import PostgresDatabase  # an extra
    except ImportError as error:
        raise StoreError("PostgreSQL needs an extra: pip install 'deepseek-gateway[postgres]'") from error
    return PostgresDatabase(url)


def migrate_store(path: Path, url: str | None) -> list[Migration]:
    """Bring the store up to date, making it if needed; gives the migrations applied."""
    database = open_database(path, url)
    try:
        return migrate(database)
    finally:
        database.close()


def open_store(path: Path, url: str | None) -> Store:
    """The store, which must be there and up to date.

    Raises:
        StoreError: it is missing, or needs `deepseek-gateway migrate`.
    """
    if url is None and not path.exists():
        raise StoreError(f"there is no store at {path}: {ADVICE}")
    database = open_database(path, url)
    try:
        return Store(database)
    except BaseException:
        database.close()
        raise
