"""One prompt, one answer. Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them."""

from deepseek_client import DeepSeek


def main() -> None:
    """Ask, print the answer and what it took."""
    with DeepSeek() as client:
        answer = client.generate("Explain quantum computing in two sentences.", max_tokens=512, temperature=0.7)
    print(answer.text)
    if answer.usage is not None:
        print(f"[{answer.finish_reason}; {answer.usage.completion_tokens} tokens from {answer.model}]")


if __name__ == "__main__":
    main()
