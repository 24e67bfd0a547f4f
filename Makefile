# make run      build SeS and start it without an Onix, data in ses-data
# make test     all tests that need nothing but the SDK
# make lint     check that each file is formatted as dotnet format would
# make publish  the native binary, out/ses
# make install  install the binary, unit, manual and completion; PREFIX and DESTDIR as usual; make uninstall
# make deb      a Debian package, out/ses_VERSION_ARCH.deb
# make image    the image as an OCI archive, out/ses-VERSION-linux-ARCH.oci.tar; needs no container engine
# make sbom     what the binary consists of, with all licences, out/doc
#   ARCH=arm64  each of these cross-compiled for the other architecture: out/arm64/ses; on arm64, ARCH=amd64
# make release  all of these for both architectures, with SBOMs and checksums, from a tag: out/release
# make e2e      end-to-end tests on the native binary, with Debian's programs
# make e2e-cross the same for the other architecture, under QEMU
# make pictures the pictures in docs/page, anew
# make soak     an hour of Alertmanager's traffic, with Onix down and SeS killed now and then; an hour of faults of
#               a pair; 200 kills of the store
# make bench    the figures of docs/design.md

SHELL := /bin/bash
PORT ?= 8888
DOTNET := dotnet
# Without analyzers, which take longer than the compiler: make test and each debug build run them.
PUBLISH = $(DOTNET) publish Ses.csproj -p:RunAnalyzers=false -c Release -r $(RID) -o $(@D) --nologo -p:SqliteLibrary=$(abspath $(SQLITE))
SOURCES := Ses.cs Ses.csproj trim.xml
# The version comes from git, or is given: make VERSION=1.2.3. For Debian a "-" would start a revision, so it
# becomes "~", which sorts before the end of a version.
DESCRIBED := $(shell VERSION='$(VERSION)' .ci/version)
VERSION := $(or $(word 1,$(DESCRIBED)),$(error There is no version))
DEB_VERSION := $(subst -,~,$(VERSION))

# Architectures have Debian's names. Builds for this machine's architecture go to out/, for the other one to
# out/ARCH/: clang and lld cross-compile them, with Debian's libraries of that architecture.
QEMU_amd64 := x86_64
QEMU_arm64 := aarch64
HOST_ARCH := $(if $(filter aarch64,$(shell uname -m)),arm64,amd64)
OTHER_ARCH := $(filter-out $(HOST_ARCH),amd64 arm64)
ARCH := $(HOST_ARCH)
RID_amd64 := linux-x64
RID_arm64 := linux-arm64
TRIPLE_amd64 := x86_64-linux-gnu
TRIPLE_arm64 := aarch64-linux-gnu
RID := $(or $(RID_$(ARCH)),$(error ARCH is "$(ARCH)", which is neither amd64 nor arm64))
ifeq ($(ARCH),$(HOST_ARCH))
OUT := out
OBJ := obj/native
# clang where there is one: another compiler makes another binary of the same commit.
TARGET_CC := $(if $(shell command -v clang),clang,$(CC))
TARGET_AR := $(AR)
LINK := cc
else
OUT := out/$(ARCH)
OBJ := obj/$(ARCH)
TARGET_CC := clang --target=$(TRIPLE_$(ARCH))
TARGET_AR := llvm-ar
LINK := $(TARGET_CC)
# For Ses.csproj, and for the CMake that compiles .NET's part of OpenSSL.
CROSS := CC='$(TARGET_CC)' OBJCOPY=llvm-objcopy TRIPLE=$(TRIPLE_$(ARCH)) CMAKE_TOOLCHAIN_FILE=$(CURDIR)/.ci/cross.cmake
endif

# Packed files get the time of the commit, so that the same commit makes the same package.
export SOURCE_DATE_EPOCH := $(or $(word 3,$(DESCRIBED)),$(shell stat -c %Y Ses.cs))
SUMMARY := awk '{ print } /(Passed!|Failed!)  - Failed:/ { gsub(",", ""); failed += $$4; passed += $$6 } \
	END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 || passed == 0 }'

# A static binary needs lld, cmake and a static OpenSSL, which on some systems needs zstd: this tries what links.
# If nothing does, this is empty, and the binary is linked to libc and libssl.
STATIC = $(shell command -v cmake >/dev/null && for zstd in "" -lzstd; do \
	echo 'int OPENSSL_init_ssl(); int main() { return OPENSSL_init_ssl(); }' \
		| $(LINK) -xc - -o /dev/null -w -static -fuse-ld=lld -lssl -lcrypto $$zstd -lz 2>/dev/null \
		&& echo "-p:Static=true -p:StaticLibraries=$$zstd" && break; done)

# SQLite in the native binary: compiled from its single source file, which an npm package contains unmodified (the
# package is fetched; nothing in it is run). Or use your own static library: make SQLITE=/usr/lib/libsqlite3.a
SQLITE_PACKAGE := better-sqlite3-13.2.0
SQLITE_SHA256 := 75a4760a7b9727a4c4c877aec92eacf39e52a8f2921ce00bd33be6d3a8e8e254
SQLITE_DIR := obj/sqlite/$(SQLITE_PACKAGE)
SQLITE ?= $(SQLITE_DIR)/$(ARCH)/libe_sqlite3.a
# No unwind tables: only exceptions and debuggers use them, and they take 0.1 MB.
SQLITE_CFLAGS := -O2 -fPIE -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables \
	$(addprefix -DSQLITE_,THREADSAFE=2 DQS=0 DEFAULT_MEMSTATUS=0 LIKE_DOESNT_MATCH_BLOBS MAX_EXPR_DEPTH=0 \
	OMIT_DEPRECATED OMIT_LOAD_EXTENSION OMIT_SHARED_CACHE USE_ALLOCA DEFAULT_WAL_SYNCHRONOUS=2)
# As small as with gcc, and no slower.
SQLITE_CFLAGS += $(if $(findstring clang,$(TARGET_CC)),-mllvm -inline-threshold=60)
SQLITE_OR := or name a static library of SQLite: make SQLITE=/usr/lib/libsqlite3.a

# The components of the binary and their licences, which are packed with it. The image also has files of some
# packages, and so an SBOM of its own.
SBOM = CC='$(if $(CROSS),$(TARGET_CC),cc)' $(DOTNET) run --file .ci/sbom.cs -- $(OBJ) $(OUT)/ses $(ARCH) '$(DESCRIBED)'
LICENSES := $(addprefix /usr/share/common-licenses/,Apache-2.0 GPL-3 LGPL-2.1 MPL-2.0)

sbom: $(OUT)/doc
$(OUT)/doc: $(OUT)/ses .ci/sbom.cs deploy/debian/copyright
	@rm -rf $@ $@.new && mkdir -p $@.new
	$(SBOM) $@.new/image ca-certificates tzdata
	@mv $@.new/image/ses.cdx.json $(OUT)/image.cdx.json && rm -r $@.new/image
	$(SBOM) $@.new
	install -m 644 -t $@.new deploy/debian/copyright
	install -D -m 644 -t $@.new/licenses $(LICENSES)
	@mv $@.new $@

# The image of the Dockerfile, made without a container engine, and so for any architecture. Load it with docker
# load or podman load.
NAME := ses-$(VERSION)-linux-$(ARCH)
image: $(OUT)/ses $(OUT)/doc
	@rm -f $(OUT)/ses-*.oci.tar
	$(DOTNET) run --file .ci/oci.cs -- Dockerfile . $(ARCH) '$(DESCRIBED)' $(OUT)/$(NAME).oci.tar \
		/src/out/ses=$(OUT)/ses /src/out/doc=$(OUT)/doc

# All files of a release, from the commit of a tag: the same commit makes the same bytes.
RELEASE := out/release
release:
	@changed=$$(git status --porcelain) && test -z "$$changed" \
		|| { echo "A release is made from a clean checkout, and git status names changes: commit or stash them." >&2; exit 1; }
	@git tag --points-at HEAD | grep -qxF 'v$(VERSION)' \
		|| { echo "A release is made from the commit of its tag, such as v1.2.3, and this commit has none." >&2; exit 1; }
	rm -rf $(RELEASE) && mkdir -p $(RELEASE)
	$(MAKE) --no-print-directory ARCH=amd64 release-files
	$(MAKE) --no-print-directory ARCH=arm64 release-files
	cd $(RELEASE) && sha256sum -- * > SHA256SUMS
	@ls -l $(RELEASE)

# The files of one architecture. The first SBOM is for the archive and the package, the second for the image.
release-files: deb image
	@test -n "$(STATIC)" || { echo "A release has a static binary: lld, cmake, static OpenSSL or its zstd is missing." >&2; exit 1; }
	rm -rf $(OUT)/$(NAME) && mkdir -p $(OUT)/$(NAME)
	cp -r $(OUT)/ses LICENSE out/ses.8 out/ses.default deploy/ses.bash deploy/ses.service deploy/ses.socket \
		$(OUT)/doc/* $(OUT)/$(NAME)
	tar -C $(OUT) --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner --mode=go=u-w \
		-c $(NAME) | gzip -9n > $(RELEASE)/$(NAME).tar.gz
	cp $(OUT)/ses_*.deb $(OUT)/$(NAME).oci.tar $(RELEASE)
	cp $(OUT)/doc/ses.cdx.json $(RELEASE)/$(NAME).cdx.json
	cp $(OUT)/image.cdx.json $(RELEASE)/$(NAME).oci.cdx.json
	rm -rf $(OUT)/$(NAME)

PREFIX ?= /usr/local
UNITDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib/systemd/system,/etc/systemd/system)
BIN = $(DESTDIR)$(PREFIX)/bin/ses
MAN = $(DESTDIR)$(PREFIX)/share/man/man8/ses.8.gz
COMPLETION = $(DESTDIR)$(PREFIX)/share/bash-completion/completions/ses
DEFAULTS = $(DESTDIR)/etc/default/ses

.PHONY: run test lint publish install uninstall sbom deb image release release-files e2e e2e-cross pictures soak bench clean always

run:
	$(DOTNET) build Ses.csproj -c Release -v quiet --nologo -p:RunAnalyzers=false
	@echo
	@echo "SeS listens on port $(PORT). Send it an alert from another terminal:"
	@echo
	@echo "  curl -i http://localhost:$(PORT)/alerts/INS -d '{\"version\":\"4\",\"alerts\":[{\"status\":\"firing\",\"labels\":{\"alertname\":\"Down\",\"job\":\"etcd\",\"instance\":\"n1:2379\"},\"startsAt\":\"'\$$(date -u +%FT%TZ)'\"}]}'"
	@echo "  curl http://localhost:$(PORT)/alerts/INS/history"
	@echo
	@exec $(DOTNET) bin/Release/net10.0/ses.dll --onix-url none --data-dir ses-data --port $(PORT)

test:
	@set -o pipefail; $(DOTNET) test Ses.Tests --nologo --filter 'Category!=E2E&Category!=Bench' 2>&1 | $(SUMMARY)

# Only whitespace: the build already checks style, and runs the analyzers.
lint:
	@$(DOTNET) format whitespace . --folder --verify-no-changes

publish: $(OUT)/ses

# Written only when the version changes, so that what depends on it is rebuilt for another commit, and only then.
out/version: always
	@mkdir -p $(@D); echo '$(DESCRIBED)' | cmp -s - $@ || echo '$(DESCRIBED)' > $@

$(SQLITE_DIR)/sqlite3.c:
	@command -v npm >/dev/null || { echo "npm, which fetches SQLite, is missing: install it, $(SQLITE_OR)" >&2; exit 1; }
	@mkdir -p $(@D)
	@echo "Fetching SQLite: npm pack $(SQLITE_PACKAGE:better-sqlite3-%=better-sqlite3@%)"
	@npm pack $(SQLITE_PACKAGE:better-sqlite3-%=better-sqlite3@%) --ignore-scripts --pack-destination $(@D) \
		--loglevel error >/dev/null || { echo "npm cannot fetch SQLite: try again, $(SQLITE_OR)" >&2; exit 1; }
	@tar -xzOf $(@D)/$(SQLITE_PACKAGE).tgz package/deps/sqlite3/sqlite3.c > $@.unchecked
	@rm $(@D)/$(SQLITE_PACKAGE).tgz
	@echo "$(SQLITE_SHA256)  $@.unchecked" | sha256sum --check --status \
		|| { echo "$@.unchecked is not the SQLite that the Makefile expects: its SHA-256 differs." >&2; exit 1; }
	@mv $@.unchecked $@

$(SQLITE_DIR)/$(ARCH)/libe_sqlite3.a: $(SQLITE_DIR)/sqlite3.c
	@command -v $(firstword $(TARGET_CC)) >/dev/null \
		|| { echo "$(firstword $(TARGET_CC)), which compiles SQLite, is missing: install it, $(SQLITE_OR)" >&2; exit 1; }
	@mkdir -p $(@D)
	$(TARGET_CC) $(SQLITE_CFLAGS) -c $< -o $(@D)/sqlite3.o
	@rm -f $@ && $(TARGET_AR) rcsD $@ $(@D)/sqlite3.o

ifeq ($(ARCH),$(HOST_ARCH))
out/ses: $(SOURCES) $(SQLITE) out/version
	@test -n "$(STATIC)" || echo "No static binary: lld, cmake, static OpenSSL or its zstd is missing (Debian:" \
		"lld cmake libssl-dev libzstd-dev). This one needs libc, and libssl for TLS."
	$(PUBLISH) $(STATIC) -p:BaseIntermediateOutputPath=$(OBJ)/
	@touch $@
else
# Debian packages, as apt-get install takes them.
CROSS_TOOLS = clang lld llvm cmake $(addsuffix :$(ARCH),libc6-dev \
	libgcc-$(lastword $(shell ls /usr/lib/gcc/$(TRIPLE_$(HOST_ARCH)) 2>/dev/null | sort -n))-dev \
	libssl-dev zlib1g-dev libzstd-dev)

$(OUT)/ses: $(SOURCES) $(SQLITE) out/version
	@test -n "$(STATIC)" || { echo "This machine cannot link for $(ARCH). On Debian, install what it needs:" \
		"dpkg --add-architecture $(ARCH); apt-get update; apt-get install $(CROSS_TOOLS)" >&2; exit 1; }
	$(CROSS) $(PUBLISH) $(STATIC) -p:BaseIntermediateOutputPath=$(OBJ)/
	@touch $@

# The manual and the settings file are the same for each architecture; this machine's own binary prints them.
out/ses: always
	@$(MAKE) --no-print-directory ARCH=$(HOST_ARCH) $@
endif

# The binary that is linked to libc: tests can replace its clock.
out/dynamic/ses: out/ses
	$(PUBLISH) -v quiet -p:BaseIntermediateOutputPath=obj/native/ -p:NativeOutputPath=$(abspath obj/dynamic)/ -p:Map=false
	@touch $@

# The manual and the settings file are made from --help.
out/ses.8: out/ses out/version deploy/ses.8.awk
	{ out/ses --help; out/ses --help | sed -n '/^Commands:/,/^$$/s/^  \([a-z]*\( [a-z]\+\)\?\)  .*/\1/p' \
		| while read -r command; do echo "@$$command"; out/ses $$command --help; done; } \
		| awk -v version=$(VERSION) -v date=$$(date -u -d @$$SOURCE_DATE_EPOCH +%F) -f deploy/ses.8.awk > $@

out/ses.default: out/ses deploy/ses.default.awk
	out/ses --help | awk -f deploy/ses.default.awk > $@

install: $(OUT)/ses out/ses.8 out/ses.default
	install -D -m 755 $(OUT)/ses "$(BIN)"
	install -d "$(DESTDIR)$(UNITDIR)" "$(dir $(MAN))" "$(dir $(DEFAULTS))"
	sed 's|^ExecStart=/usr/bin/ses|ExecStart=$(PREFIX)/bin/ses|' deploy/ses.service > "$(DESTDIR)$(UNITDIR)/ses.service"
	chmod 644 "$(DESTDIR)$(UNITDIR)/ses.service"
	install -m 644 deploy/ses.socket "$(DESTDIR)$(UNITDIR)/ses.socket"
	gzip -9nc out/ses.8 > "$(MAN)" && chmod 644 "$(MAN)"
	install -D -m 644 deploy/ses.bash "$(COMPLETION)"
	test -e "$(DEFAULTS)" || install -m 640 out/ses.default "$(DEFAULTS)"

uninstall:
	rm -f "$(BIN)" "$(DESTDIR)$(UNITDIR)/ses.service" "$(DESTDIR)$(UNITDIR)/ses.socket" "$(MAN)" "$(COMPLETION)"
	@echo "Not removed: $(DEFAULTS) and the data directory."

DEB = $(OUT)/deb
deb: $(OUT)/ses out/ses $(OUT)/doc
	rm -rf $(DEB) $(OUT)/ses_*.deb
	$(MAKE) --no-print-directory -o $(OUT)/ses -o out/ses install DESTDIR=$(DEB) PREFIX=/usr
	install -D -m 644 -t $(DEB)/usr/share/doc/ses $(OUT)/doc/copyright $(OUT)/doc/ses.cdx.json
	gzip -9nc $(OUT)/doc/THIRD-PARTY-NOTICES.txt > $(DEB)/usr/share/doc/ses/THIRD-PARTY-NOTICES.txt.gz
	chmod 644 $(DEB)/usr/share/doc/ses/THIRD-PARTY-NOTICES.txt.gz
	install -D -m 644 deploy/debian/lintian-overrides $(DEB)/usr/share/lintian/overrides/ses
	sed -e 's/@VERSION@/$(DEB_VERSION)/' -e "s/@DATE@/$$(date -Ru -d @$$SOURCE_DATE_EPOCH)/" deploy/debian/changelog \
		| gzip -9n > $(DEB)/usr/share/doc/ses/changelog.gz
	chmod 644 $(DEB)/usr/share/doc/ses/changelog.gz
	install -d $(DEB)/DEBIAN && echo /etc/default/ses > $(DEB)/DEBIAN/conffiles
	install -m 755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm $(DEB)/DEBIAN
	sed -e 's/@VERSION@/$(DEB_VERSION)/' -e 's/@ARCH@/$(ARCH)/' \
		-e "s/@SIZE@/$$(du -sk --exclude=DEBIAN $(DEB) | cut -f1)/" deploy/debian/control > $(DEB)/DEBIAN/control
	cd $(DEB) && find usr -type f -print0 | sort -z | xargs -0 md5sum > DEBIAN/md5sums
	chmod 644 $(DEB)/DEBIAN/control $(DEB)/DEBIAN/conffiles $(DEB)/DEBIAN/md5sums
	find $(DEB) -type d -exec chmod 755 {} +
	dpkg-deb --root-owner-group --build $(DEB) $(OUT)
	rm -rf $(DEB)

# Not "npm ci": it would also want packages for other systems, and not all of those are published.
Ses.Tests/engines/node_modules: Ses.Tests/engines/package-lock.json
	cd $(@D) && npm install --no-save --silent --ignore-scripts --no-audit --no-fund && touch node_modules

Ses.Tests/%/node_modules: Ses.Tests/%/package-lock.json
	cd $(@D) && npm ci --silent --ignore-scripts --no-audit --no-fund && touch node_modules

e2e: out/ses out/doc out/dynamic/ses Ses.Tests/oidc/node_modules Ses.Tests/manifests/node_modules Ses.Tests/axe/node_modules \
		Ses.Tests/engines/node_modules Ses.Tests/sbom/node_modules
	@set -o pipefail; $(DOTNET) test Ses.Tests --nologo --filter 'Category=E2E&Category!=Cross' -- xUnit.MaxParallelThreads=5 2>&1 | $(SUMMARY)

# Runs the binary of the other architecture under QEMU.
e2e-cross: out/ses out/doc Ses.Tests/sbom/node_modules
	@$(MAKE) --no-print-directory publish sbom ARCH=$(OTHER_ARCH)
	@command -v qemu-$(QEMU_$(OTHER_ARCH)) >/dev/null \
		|| { echo "qemu-$(QEMU_$(OTHER_ARCH)), which runs the binary, is missing: apt-get install qemu-user" >&2; exit 1; }
	@set -o pipefail; $(DOTNET) test Ses.Tests --nologo --filter 'Category=Cross' 2>&1 | $(SUMMARY)

# A page that has changed fails a test until its picture is taken anew: by Chromium, made smaller by pngquant.
pictures:
	@SES_PICTURES=1 $(DOTNET) test Ses.Tests --nologo --filter 'FullyQualifiedName~PicturesEndToEnd' 2>&1 | $(SUMMARY)

# SOAK: the length of make soak, in seconds.
SOAK ?= 3600
soak: out/ses
	@SES_SOAK=$(SOAK) $(DOTNET) test Ses.Tests --nologo --filter 'FullyQualifiedName~SoakEndToEnd|FullyQualifiedName~Tests.PairEndToEnd|FullyQualifiedName~StoreFault|FullyQualifiedName~KilledAtAnyMoment|FullyQualifiedName~WorstOfAll|FullyQualifiedName~RandomHistories|FullyQualifiedName~AbsencesMake' \
		--logger 'console;verbosity=detailed' 2>&1 | grep -vE '^(  Determining|  All projects|Test run|A total)'; exit $${PIPESTATUS[0]}

bench: out/ses
	@$(DOTNET) test Ses.Tests --nologo -c Release --filter 'Category=Bench' --logger 'console;verbosity=detailed' 2>&1 \
		| grep --line-buffered -E '^ *\||Failed|Error|^ +at ' || true

clean:
	rm -rf bin obj out Ses.Tests/bin Ses.Tests/obj
