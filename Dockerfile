# Serves an encoder on CPUs; docs/serving.md shows how to start it.
FROM python:3.12-slim
WORKDIR /mmrl
COPY requirements.txt requirements-serve.txt ./
RUN pip install --no-cache-dir -r requirements-serve.txt \
    && useradd --create-home serve
COPY mmrl mmrl
USER serve
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=120s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# The image holds no weights and no token: both are mounted.
ENTRYPOINT ["python", "-m", "mmrl.serve", "--host=0.0.0.0", "--token_file=/run/secrets/token"]
CMD ["--encoder=/encoder"]
