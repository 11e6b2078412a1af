# The broker's CLI and workers. Producers are mounted at /app, where broker.toml and modules are looked for.
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 broker \
    && install --directory --owner=broker /app /var/tmp/broker

COPY pyproject.toml README.md LICENSE /src/
COPY broker /src/broker
COPY workers /src/workers
RUN pip install --no-cache-dir "/src[postgres]" && rm -r /src

USER broker
WORKDIR /app
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["broker"]
CMD ["worker"]
