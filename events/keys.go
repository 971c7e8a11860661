package events

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/sandglass/sandglass/core"
)

// The keys of a state folder, each a seed in a file of its own in keys/, mode 0600, made
// by whoever needs it first. The operator vouches for the accounts of the embedded server,
// the account signs the credentials of sessions, the seal signs the ends of sessions.
const (
	keyOperator = "operator.nk"
	keyAccount  = "account.nk"
	keySystem   = "system.nk"
	keySeal     = "seal.nk"
)

// key reads the key of that name, or makes it.
func key(home, name string, create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, error) {
	dir := filepath.Join(home, "keys")
	path := filepath.Join(dir, name)
	for range 2 {
		seed, err := os.ReadFile(path)
		if err == nil {
			kp, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(seed))))
			if err != nil {
				return nil, core.Hint(fmt.Errorf("key %s: %w", path, err), "move the file away; a new key is made then")
			}
			return kp, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read key: %w", err)
		}
		if err := makeKey(dir, path, create); err != nil {
			return nil, fmt.Errorf("make key %s: %w", path, err)
		}
	}
	return nil, fmt.Errorf("key %s disappears", path)
}

// makeKey writes a new key's file whole or not at all, and never over another one.
func makeKey(dir, path string, create func() (nkeys.KeyPair, error)) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	kp, err := create()
	if err != nil {
		return err
	}
	seed, err := kp.Seed()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(seed, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// SealKey returns the key that seals the ends of sessions, which it makes when there is
// none.
func SealKey(home string) (ed25519.PrivateKey, error) {
	kp, err := key(home, keySeal, nkeys.CreateUser)
	if err != nil {
		return nil, err
	}
	seed, err := kp.Seed()
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", keySeal, err)
	}
	_, raw, err := nkeys.DecodeSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", keySeal, err)
	}
	return ed25519.NewKeyFromSeed(raw), nil
}

// inboxPrefix is where the answers to a session's requests arrive. It is the session's
// own: in a common one it could read others' answers.
func inboxPrefix(id core.SessionID) string { return "_INBOX_" + escapeToken(string(id)) }

// MintSessionCreds makes the credentials of a session on the embedded server: they may
// publish the session's own subjects, ask for the last message of these, and receive
// answers. They may do nothing else.
func MintSessionCreds(home string, s core.Session) (userJWT, seed string, err error) {
	a := address{s.Host, s.Box, s.ID}
	return mint(home, "session "+string(s.ID), func(c *jwt.UserClaims) {
		c.Pub.Allow.Add(a.prefix() + ".>")
		for _, stream := range []string{StreamOps, StreamCtl} {
			c.Pub.Allow.Add(directGet(stream, a.subject(stream)))
		}
		c.Sub.Allow.Add(inboxPrefix(s.ID) + ".>")
	})
}

func mint(home, name string, permit func(*jwt.UserClaims)) (userJWT, seed string, err error) {
	account, err := key(home, keyAccount, nkeys.CreateAccount)
	if err != nil {
		return "", "", err
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		return "", "", fmt.Errorf("make credentials: %w", err)
	}
	pub, err := user.PublicKey()
	if err != nil {
		return "", "", fmt.Errorf("make credentials: %w", err)
	}
	raw, err := user.Seed()
	if err != nil {
		return "", "", fmt.Errorf("make credentials: %w", err)
	}
	c := jwt.NewUserClaims(pub)
	c.Name = name
	permit(c)
	userJWT, err = c.Encode(account)
	if err != nil {
		return "", "", fmt.Errorf("make credentials: %w", err)
	}
	return userJWT, string(raw), nil
}
