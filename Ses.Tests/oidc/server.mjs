// An OpenID Connect provider for SeS's tests, on 127.0.0.1.
//
//     node server.mjs PORT LIFETIME CLIENT SECRET USER PASSWORD KEY
//
// It is oidc-provider, which is certified, with the one thing added that it lacks and that Onix's
// installations use: the grant "password" (RFC 6749, 4.3). Access tokens are JWTs (RFC 9068) of
// LIFETIME seconds, signed with RS256 by the key at /jwks, whose id is KEY, for the audience "urn:onix",
// with Onix's claim "roles"; or, by client_credentials, for the "resource" that is asked for. Prints "ready"
// once it listens, and "granted" for each token.

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import Provider, { errors } from 'oidc-provider';

const [port, lifetime, clientId, clientSecret, username, password, keyId] = process.argv.slice(2);
const audience = 'urn:onix';

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const key = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: keyId };

const onix = {
    audience,
    scope: 'openid onix',
    accessTokenFormat: 'jwt',
    jwt: { sign: { alg: 'RS256' } },
};

const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [{
        client_id: clientId,
        client_secret: clientSecret,
        grant_types: ['password', 'client_credentials'],
        response_types: [],
        redirect_uris: [],
        token_endpoint_auth_method: 'client_secret_basic',
    }],
    jwks: { keys: [key] },
    cookies: { keys: ['no browser comes here'] },
    scopes: ['openid', 'onix'],
    ttl: { AccessToken: Number(lifetime), ClientCredentials: Number(lifetime) },
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: () => ({ roles: ['ADMIN'] }),
    features: {
        devInteractions: { enabled: false },
        clientCredentials: { enabled: true },
        resourceIndicators: {
            enabled: true,
            getResourceServerInfo: (_ctx, resource) => ({ ...onix, audience: resource }),
        },
    },
});

async function passwordGrant(ctx) {
    const { client, params } = ctx.oidc;
    if (params.username !== username || params.password !== password) {
        throw new errors.InvalidGrant('invalid user credentials');
    }
    const scopes = (params.scope ?? '').split(' ').filter((scope) => onix.scope.split(' ').includes(scope));
    if (!scopes.includes('onix')) throw new errors.InvalidScope('the scope onix is needed', params.scope);
    const token = new provider.AccessToken({
        accountId: params.username, client, gty: 'password', scope: scopes.join(' '),
    });
    token.resourceServer = new provider.ResourceServer(audience, onix);
    ctx.oidc.entity('AccessToken', token);
    ctx.body = {
        access_token: await token.save(),
        expires_in: token.expiration,
        scope: token.scope,
        token_type: token.tokenType,
    };
}

provider.registerGrantType('password', passwordGrant, ['username', 'password', 'scope']);
provider.on('grant.success', () => console.log('granted'));
provider.on('server_error', (_ctx, error) => console.error(error));

const server = createServer(provider.callback());
server.listen(Number(port), '127.0.0.1', () => console.log('ready'));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
