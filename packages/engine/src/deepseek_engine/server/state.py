"""What the routes of one server share."""

from deepseek_engine.grammar.trials import GrammarTrials
from deepseek_engine.server.convert import Converter
from deepseek_engine.server.engine_client import EngineClient
from deepseek_engine.server.errors import unavailable
from deepseek_engine.server.metrics import Metrics
from deepseek_engine.server.running import RunningRequests
from deepseek_engine.server.served_models import ServedModels
from deepseek_engine.server.settings import ServerSettings
from deepseek_engine.tokenizer import Tokenizer


class ServerState:
    """Engine, tokenizer, settings, and who is being served.

    Attributes:
        is_draining: set at shutdown: what runs may finish, nothing new is taken.
    """

    def __init__(self, engine: EngineClient, tokenizer: Tokenizer, settings: ServerSettings) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.models = ServedModels(settings.model_names, engine.adapters)
        self.metrics = Metrics(
            lambda: engine.stats, lambda: engine.vitals, engine.info.weight_bytes_by_dtype, engine.info.kernels
        )
        self.running = RunningRequests()
        self.grammars = GrammarTrials(
            settings.model_path, engine.info.vocab_size, tokenizer.eos_token_ids, settings.grammar_timeout_s
        )
        self.is_draining = False
        self.context_len = min(engine.info.max_model_len, engine.info.num_blocks * engine.info.block_size)
        self.converter = Converter(
            tokenizer,
            settings,
            context_len=self.context_len,
            vocab_size=engine.info.vocab_size,
            hidden_size=engine.info.hidden_size,
        )

    def check_available(self) -> None:
        """Raise if no new request can be taken.

        Raises:
            ApiError: 503 with the reason and Retry-After.
        """
        if self.is_draining:
            raise unavailable("the server is shutting down: send the request to another one")
        if not self.engine.is_alive:
            raise unavailable("the engine core is gone: the server is about to exit")

    def check_ready(self) -> None:
        """Raise if new requests should go elsewhere. Those that come are taken all the same: a long step may yet end.

        Raises:
            ApiError: 503 with the reason and Retry-After.
        """
        self.check_available()
        if (trouble := self.engine.vitals.trouble) is not None:
            raise unavailable(trouble)
