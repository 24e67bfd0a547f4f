# make run      build SeS and start it without an Onix, data in ses-data
# make test     all tests that need nothing but the SDK
# make publish  the native binary, out/ses
# make install  the binary, its unit and its manual; PREFIX and DESTDIR as usual; make uninstall
# make e2e      end-to-end tests on the native binary, with Debian's programs
# make bench    the figures of the README

SHELL := /bin/bash
PORT ?= 8888
DOTNET := dotnet
SOURCES := Ses.cs Ses.csproj
SUMMARY := awk '{ print } /(Passed!|Failed!)  - Failed:/ { gsub(",", ""); failed += $$4; passed += $$6 } \
	END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 || passed == 0 }'

# A static binary needs lld, cmake and static OpenSSL; without them it is linked to libc and libssl.
STATIC := $(shell command -v ld.lld >/dev/null && command -v cmake >/dev/null \
	&& test -e "$$(cc -print-file-name=libssl.a)" && echo true)

PREFIX ?= /usr/local
UNITDIR ?= $(if $(filter /usr,$(PREFIX)),/lib/systemd/system,/etc/systemd/system)

.PHONY: run test publish install uninstall e2e bench clean

run:
	$(DOTNET) build Ses.csproj -c Release -v quiet --nologo
	@echo
	@echo "SeS listens on port $(PORT). Send it an alert from another terminal:"
	@echo
	@echo "  curl -i http://localhost:$(PORT)/alerts/INS -d '{\"version\":\"4\",\"alerts\":[{\"status\":\"firing\",\"labels\":{\"alertname\":\"Down\",\"job\":\"etcd\",\"instance\":\"n1:2379\"},\"startsAt\":\"'\$$(date -u +%FT%TZ)'\"}]}'"
	@echo "  cat ses-data/events-*.jsonl"
	@echo
	@dll=$$(ls bin/Release/net10.0/*/ses.dll bin/Release/net10.0/ses.dll 2>/dev/null | head -1); \
		exec $(DOTNET) "$$dll" --onix-url none --data-dir ses-data --port $(PORT)

test:
	@set -o pipefail; $(DOTNET) test Ses.Tests --nologo --filter 'Category!=E2E&Category!=Bench' 2>&1 | $(SUMMARY)

publish: out/ses

out/ses: $(SOURCES)
	@test -n "$(STATIC)" || echo "No static binary: lld, cmake or libssl.a is missing" \
		"(Debian: lld cmake libssl-dev). This one needs libc, and libssl for TLS."
	$(DOTNET) publish Ses.csproj -c Release -r linux-x64 -o out --nologo -p:Static=$(STATIC)

install: out/ses
	install -D -m 755 out/ses "$(DESTDIR)$(PREFIX)/bin/ses"
	install -d "$(DESTDIR)$(UNITDIR)"
	sed 's|^ExecStart=/usr/bin/ses|ExecStart=$(PREFIX)/bin/ses|' deploy/ses.service > "$(DESTDIR)$(UNITDIR)/ses.service"
	chmod 644 "$(DESTDIR)$(UNITDIR)/ses.service"

uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/ses" "$(DESTDIR)$(UNITDIR)/ses.service"

Ses.Tests/oidc/node_modules: Ses.Tests/oidc/package-lock.json
	cd $(@D) && npm ci --silent --no-audit --no-fund && touch node_modules

e2e: out/ses Ses.Tests/oidc/node_modules
	@set -o pipefail; $(DOTNET) test Ses.Tests --nologo --filter 'Category=E2E' 2>&1 | $(SUMMARY)

bench: out/ses
	@$(DOTNET) test Ses.Tests --nologo -c Release --filter 'Category=Bench' --logger 'console;verbosity=detailed' 2>&1 \
		| grep -E '^ *\||Failed|Error|^ +at ' || true

clean:
	rm -rf bin obj out Ses.Tests/bin Ses.Tests/obj
