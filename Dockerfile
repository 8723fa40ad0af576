# A CPU image of ssamba whose process is not root: docker build -t ssamba .
#   docker run --rm --user "$(id -u)" -v "$PWD":/data ssamba embed recordings/ -o embeddings.npz
FROM python:3.11-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/ssamba
ENV PATH=/opt/ssamba/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY src ./src
RUN pip install ".[codecs,store,eval]"

FROM python:3.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/ssamba /opt/ssamba
RUN useradd --create-home --uid 1000 ssamba && mkdir /data && chown ssamba /data
USER ssamba
ENV PATH=/opt/ssamba/bin:$PATH SSAMBA_CACHE=/tmp/ssamba
RUN ssamba info --check
WORKDIR /data
ENTRYPOINT ["ssamba"]
CMD ["--help"]
