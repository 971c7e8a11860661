package layers

import (
	"context"
	"errors"
)

// Settle brings to its end what a crash has cut short in the box: a commit, or a rollback.
// Where a session runs there is nothing of the kind; of a damaged box nothing is touched.
// It takes the box's lock.
func (b Dir) Settle() error {
	lock, err := b.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	refs, err := b.Running()
	if err != nil || len(refs) > 0 {
		return err
	}
	return b.settle()
}

// settle is Settle for who holds the lock and knows that no session runs.
func (b Dir) settle() error {
	if err := b.Recover(); err != nil {
		return err
	}
	return b.FinishRollback()
}

// alter calls f, which changes what the upper layers hold. The manifest, when there is one,
// is no other's to compare with meanwhile, and tells of the new state afterwards, also when
// f has failed half way: else the next session takes all of it for somebody's from outside.
func (b Dir) alter(f func() error) error {
	had := b.HasManifest()
	if err := b.ForgetManifest(); err != nil {
		return err
	}
	err := f()
	if had {
		err = errors.Join(err, b.WriteManifest(context.Background()))
	}
	return err
}
